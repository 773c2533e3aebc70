"""The demo: the whole main job in one command, which goes on where it was stopped."""

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from kdpipe.cache.verify import verify_cache
from kdpipe.cli import main
from kdpipe.pipeline.small_teacher import Sizes, documents, make_teacher, write_corpus
from kdpipe.pipeline.students.older import tokenizer_note
from support.commands import kdpipe


@pytest.mark.slow
def test_the_demo_does_the_main_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["demo", "--out", str(tmp_path), "--steps", "3"]) == 0
    shown = capsys.readouterr()
    typed = re.findall(r"^\$ kdpipe (.*)$", shown.err, re.MULTILINE)
    assert [words.split(" --")[0].split(" /")[0] for words in typed] == [
        "plan",
        "cache-teacher",
        "cache verify",
        "cache inspect",
    ]
    assert verify_cache(tmp_path / "cache", "deep").ok
    assert "bytes a position" in shown.out
    # What it typed can be typed again.
    assert main.run([*typed[1].split(), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parts"]["made"] == 0


def test_the_small_teacher_learns(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl", documents())
    told: list[str] = []
    make_teacher(tmp_path / "corpus.jsonl", tmp_path / "teacher", Sizes(steps=25, context=64, batch=8), told.append)
    losses = [float(re.findall(r"[\d.]+ nats", line)[0].split()[0]) for line in told]
    assert losses[-1] < losses[0] - 0.3
    files = {path.name: path.read_bytes() for path in (tmp_path / "teacher").iterdir()}
    assert tokenizer_note(files) is None, "transformers 4 knows its tokenizer's class"
    before = (tmp_path / "teacher" / "model.safetensors").stat().st_ino
    make_teacher(tmp_path / "corpus.jsonl", tmp_path / "teacher", Sizes(steps=25), told.append)
    assert (tmp_path / "teacher" / "model.safetensors").stat().st_ino == before


@pytest.mark.slow
def test_an_interrupted_demo_exits_75_and_then_finishes(tmp_path: Path) -> None:
    words = [kdpipe(), "demo", "--out", str(tmp_path), "--steps", "3"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "cache" / "parts" / "00000").is_dir():
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 75
    assert said.endswith("error: interrupted\nhint: run the same command again to go on\n")
    assert not list((tmp_path / "cache" / "tmp").iterdir())
    subprocess.run(words, capture_output=True, text=True, check=True, timeout=300)
    assert verify_cache(tmp_path / "cache", "deep").ok
