"""The demo runs both stages in one command, and resumes after an interruption."""

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kdpipe.cache.verify import verify_cache
from kdpipe.cli import main
from kdpipe.pipeline.demo import prepare
from kdpipe.pipeline.small_teacher import TeacherSizes, documents, make_teacher, write_corpus
from kdpipe.pipeline.students.transformers4 import tokenizer_note
from kdpipe.pipeline.training import checkpoints
from kdpipe.schemas.errors import ConfigError
from support.commands import kdpipe

STEPS = "12"


def test_what_the_commands_start_from_is_made_once(tmp_path: Path) -> None:
    paths = prepare(tmp_path / "demo", 3)
    assert json.loads(paths.teacher_config.read_text())["model_type"] == "llama"
    assert len(paths.corpus.read_text().splitlines()) > 50
    before = {path: path.stat().st_ino for path in paths.out.rglob("*")}
    assert prepare(tmp_path / "demo", 3) == paths
    assert {path: path.stat().st_ino for path in paths.out.rglob("*")} == before


def test_a_demo_of_other_steps_and_a_folder_of_something_else_are_refused(tmp_path: Path) -> None:
    prepare(tmp_path / "demo", 3)
    with pytest.raises(ConfigError, match=r"demo holds a demo of 3 steps, not of 4") as caught:
        prepare(tmp_path / "demo", 4)
    assert caught.value.hint == "give --steps 3 to resume it, or another --out"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"other is neither empty nor a demo") as caught:
        prepare(tmp_path / "other", 4)
    assert caught.value.hint == "give another --out"


def test_a_beginning_that_was_cut_short_is_made_good(tmp_path: Path) -> None:
    (tmp_path / "demo.json.tmp").write_text("{")
    (tmp_path / "tokenizer.tmp").mkdir()
    paths = prepare(tmp_path, 3)
    assert (paths.tokenizer / "tokenizer.json").is_file()
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.slow
def test_the_small_teacher_trains(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl", documents())
    reported: list[str] = []
    make_teacher(
        tmp_path / "corpus.jsonl", tmp_path / "teacher", TeacherSizes(steps=25, context=64, batch=8), reported.append
    )
    losses = [float(re.findall(r"[\d.]+ nats", line)[0].split()[0]) for line in reported]
    assert losses[-1] < losses[0] - 0.3
    files = {path.name: path.read_bytes() for path in (tmp_path / "teacher").iterdir()}
    assert tokenizer_note(files) is None, "transformers 4 knows its tokenizer's class"
    before = (tmp_path / "teacher" / "model.safetensors").stat().st_ino
    make_teacher(tmp_path / "corpus.jsonl", tmp_path / "teacher", TeacherSizes(steps=25), reported.append)
    assert (tmp_path / "teacher" / "model.safetensors").stat().st_ino == before


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed demo."""
    out = tmp_path_factory.mktemp("demo")
    assert main.run(["demo", "--out", str(out), "--steps", STEPS]) == 0
    return out


@pytest.mark.slow
def test_the_demo_does_the_main_job_and_shows_it_again(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify_cache(done / "cache", "deep").ok
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*.safetensors")}
    assert main.run(["demo", "--out", str(done), "--steps", STEPS]) == 0
    assert {path: path.stat().st_mtime_ns for path in done.rglob("*.safetensors")} == before, "nothing is made again"
    messages = capsys.readouterr()
    found = dict(re.findall(r"^  (labels|distilled) +CE \d\.\d{4}   KL to the teacher (\d\.\d{4})", messages.out, re.M))
    assert found.keys() == {"labels", "distilled"}
    assert float(found["distilled"]) < float(found["labels"]), "the distilled student is nearer to the teacher"
    assert "bytes per position" in messages.err


def stopped(out: Path, *, when: Callable[[], bool]) -> str:
    """A demo that is stopped at a moment; its output."""
    words = [kdpipe(), "demo", "--out", str(out), "--steps", STEPS]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while not when():
            assert process.poll() is None, "it ended before it could be stopped"
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, messages = process.communicate(timeout=900)
    assert process.returncode == 75, messages
    assert messages.count("stopped: ") == 1
    assert messages.endswith(f"resume the demo with: kdpipe demo --out {out} --steps {STEPS}\n")
    return messages


def steps_done(run: Path) -> int:
    """How many steps the newest checkpoint has seen; 0 before there is one."""
    found = checkpoints.listed(run)
    return checkpoints.load_state(found[-1]).step if found else 0


@pytest.mark.slow
def test_a_demo_stopped_in_any_stage_resumes_and_ends_as_if_undisturbed(done: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    stopped(out, when=lambda: steps_done(out / "teacher-run") > 0)
    assert 0 < steps_done(out / "teacher-run") < int(STEPS)
    stopped(out, when=lambda: (out / "cache" / "parts" / "00000").is_dir())
    made = (out / "teacher-run" / "final" / "model.safetensors").stat().st_ino
    messages = stopped(out, when=lambda: steps_done(out / "distilled") > 0)
    assert "interrupted at step" in messages
    assert main.run(["demo", "--out", str(out), "--steps", STEPS]) == 0
    assert (out / "teacher-run" / "final" / "model.safetensors").stat().st_ino == made, "no stage was done again"
    for run in ("teacher-run", "labels", "distilled"):
        weights = [(folder / run / "final" / "model.safetensors").read_bytes() for folder in (done, out)]
        assert weights[0] == weights[1], run
