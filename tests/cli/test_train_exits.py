"""`kdpipe train` as a whole on a small cache: the message and exit code of each refusal and each end."""

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdpipe.cli import console, main
from kdpipe.cli.main import run
from kdpipe.pipeline.training import loop, train_state
from kdpipe.pipeline.training.interruptions import STOPPING
from kdpipe.schemas.run_report import TrainReport
from support.children import Ended, in_child
from support.corpora import small_tokenizer
from support.models import tiny_llama
from support.stage_two import STUDENT, make_cache

Outcome = tuple[int, str, str]
Command = Callable[..., Outcome]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache, and students that fit it or do not."""
    folder = tmp_path_factory.mktemp("train")
    make_cache(folder, "cache")
    (folder / "student.json").write_text(json.dumps(STUDENT))
    (folder / "short.json").write_text(json.dumps(STUDENT | {"max_position_embeddings": 64}))
    small_tokenizer(tiny_llama(folder / "other", vocabulary=400), vocabulary=400)
    return folder


@pytest.fixture
def train(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command with a run of three steps, in tmp_path/run; gives code, stdout, stderr."""
    monkeypatch.setattr("kdpipe.pipeline.training.finalize.check_reload", lambda *_, **__: 0.0)

    def typed(*words: str, cache: Path = folder / "cache", student: str = "student.json") -> Outcome:
        given = ["--from-cache", str(cache), "--student", str(folder / student), "--out", str(tmp_path / "run")]
        small = ["--max-steps", "3", "--batch-size", "2", "--set", "machine.threads=1", "--set", "evaluation.limit=2"]
        code = run(["train", *given, *small, *words])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return typed


def test_a_run_is_reported_and_resumes_as_json(train: Command, tmp_path: Path) -> None:
    code, out, err = train()
    assert code == 0
    assert out.splitlines()[-1] == f"student: {tmp_path / 'run' / 'final'}"
    assert "steps       3 optimizer steps: 2 per batch x 1 batch = 2 sequences per step" in err.splitlines()
    code, out, err = train("--json")
    answer = json.loads(out)
    assert (code, answer["steps"], answer["resumed_from"]) == (0, 3, None)
    assert list(answer) == list(TrainReport.model_fields)
    default = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["optimizer"]["lr"]
    code, out, err = train("--lr", "0.002")
    assert (code, out) == (2, "")
    assert f"optimizer.lr: {default} -> 0.002" in err
    assert train("--lr", "0.002", "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("words", "student", "code", "message", "hint"),
    [
        ([], "other", 4, "differs from the cache's: 400 ids", "the teacher's family"),
        ([], "short.json", 4, "at most 64 tokens, the cache has sequences of 96", "--seq-len 64"),
        (["--temperature", "8"], "student.json", 4, "1, 2, 4 .*8",
         "--target-temperature 8"),
        (["--set", "losses.tail_weight=1", "--mode", "logit", "--set", "losses.weights.cka=1"], "student.json", 2,
         r"batch size 2 .*losses\.hidden\.group 4$", "multiple of 4"),
        (["--set", "losses.weights.cosine=1", "--set", 'losses.hidden.pairs=["1:9"]'], "student.json", 4,
         "layer 9", "cache again with --hidden-layers"),
        (["--set", "machine.device=cuda:7"], "student.json", 2, "cuda:7 does not exist", ""),
        (["--resume-from", "2"], "student.json", 2, "has no checkpoint 2", "none"),
        (["--resume-from", "2", "--overwrite"], "student.json", 2, "--resume-from resumes from a checkpoint", "omit"),
        (["--lora"], "student.json", 2, "LoRA needs a pretrained student", "remove --lora"),
        ([], "tinny", 2, "no such folder: .*tinny", ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)  # fmt: skip
def test_a_refusal_is_two_lines_and_leaves_nothing(
    words: list[str], student: str, code: int, message: str, hint: str, train: Command, tmp_path: Path
) -> None:
    found, out, err = train(*words, student=student)
    assert (found, out) == (code, "")
    reported = err[err.index("error: ") :].splitlines()
    assert re.search(message, reported[0])
    assert hint in "".join(reported[1:])
    assert len(reported) <= 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("out", ["/proc/x", "file", "file/below"])
@pytest.mark.parametrize("words", [[], ["--dry-run"], ["--overwrite"]], ids=" ".join)
def test_a_place_that_cannot_be_written_is_a_wrong_setting(
    out: str, words: list[str], train: Command, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    code, _, err = train("--out", str(tmp_path / out), *words)
    assert code == 2
    assert out.partition("/below")[0] in err and "hint: " in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_unfinished_and_a_damaged_cache_are_reported(train: Command, folder: Path, tmp_path: Path) -> None:
    partial, damaged = (Path(shutil.copytree(folder / "cache", tmp_path / name)) for name in ("partial", "damaged"))
    (partial / "index.parquet").unlink()
    shutil.rmtree(sorted((partial / "parts").iterdir())[1])
    code, _, err = train(cache=partial)
    assert code == 2
    assert re.search(r"1 of \d parts are missing", err) and "--allow-partial" in err
    for path in damaged.glob("parts/*/targets.zarr/id/c/0"):
        data = path.read_bytes()
        path.write_bytes(bytes(byte ^ (place % 64 == 7) for place, byte in enumerate(data)))
    code, _, err = train(cache=damaged)
    assert code == 3
    assert re.search(r"error: .*parts/0000\d/targets.zarr/id", err)


def after(n_steps: int, then: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let something happen within a step, after so many."""
    step, calls = loop.forward_backward, []

    def disturbed(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == n_steps + 1:
            then()
        return step(*given)

    monkeypatch.setattr(loop, "forward_backward", disturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_run_ends_with_75_and_resumes(
    number: int, train: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    after(1, lambda: os.kill(os.getpid(), number), monkeypatch)
    code, out, err = train()
    assert (code, out) == (75, "")
    assert err.splitlines().count(STOPPING) == 1
    assert err.splitlines()[-2:] == [
        "stopped: interrupted at step 2 of 3",
        "hint: run the same command again to resume",
    ]
    code, _, err = train()
    assert code == 0
    assert any("step 2 of 3" in line for line in err.splitlines())


def test_a_signal_before_the_first_step_ends_the_command_at_once(
    train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading a student or computing an order may take minutes, and nothing has been written by then."""
    monkeypatch.setattr(train_state, "load_student", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    code, out, err = train()
    assert (code, out) == (
        130,
        "",
    ) and STOPPING not in err  # 75 where kdpipe itself listens, tests/cli/test_interrupts.py
    assert not (tmp_path / "run").exists()


def test_a_run_interrupted_twice_ends_with_130(train: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    after(1, twice, monkeypatch)
    assert train()[0] == 130
    assert train()[0] == 0


def in_a_process(train: Command, folder: Path, tmp_path: Path, log: Path) -> Ended:
    """The command in a forked child that has the handlers of `kdpipe`, with its output in a file."""

    def work() -> str:
        with log.open("a") as file:
            sys.stdout = sys.stderr = file
            os.dup2(file.fileno(), 2)
            given = ["--from-cache", str(folder / "cache"), "--student", str(folder / "student.json")]
            small = [
                "--max-steps",
                "3",
                "--batch-size",
                "2",
                "--set",
                "machine.threads=1",
                "--set",
                "evaluation.limit=2",
            ]
            sys.argv[1:] = ["train", *given, "--out", str(tmp_path / "run"), *small]
            return str(main.main())

    return in_child(work)


@pytest.mark.slow
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGHUP])
def test_a_second_signal_ends_the_process_at_once(
    second: int, train: Command, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), second)

    log = tmp_path / "log"
    with monkeypatch.context() as patched:
        after(1, twice, patched)
        assert in_a_process(train, folder, tmp_path, log).code == 130
    text = log.read_text()
    assert text.splitlines()[-1] == STOPPING
    assert train()[0] == 0


def test_a_second_signal_when_the_checkpoint_is_there_ends_the_process_at_once(
    train: Command, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also once the run has taken its own handlers away."""
    after(1, lambda: os.kill(os.getpid(), signal.SIGTERM), monkeypatch)
    monkeypatch.setattr(console, "failure", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert in_a_process(train, folder, tmp_path, tmp_path / "log").code == 130
    assert (tmp_path / "run" / "checkpoints" / "step-000002").is_dir()


def test_a_run_that_the_guard_stops_ends_with_1(train: Command) -> None:
    limits = ("guard.skip_gradient_norm=1e-9", "guard.patience=1", "guard.rollbacks=0")
    code, out, err = train(*(word for limit in limits for word in ("--set", limit)))
    assert (code, out) == (1, "")
    assert re.search(r"error: .* step 0: .* 1e-09 \(guard.skip_gradient_norm\)", err)
    assert re.search("hint: .*--lr", err)


@pytest.mark.slow
def test_memory_that_runs_out_ends_with_1_and_advice(train: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much() -> None:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 68719476736 bytes.")

    after(2, too_much, monkeypatch)
    code, _, err = train()
    assert code == 1
    assert re.search("error: out of memory .*step 3: DefaultCPUAllocator: not enough memory: you tried", err)
    assert re.search("hint: .*--set machine.portion=1 .*--set student.gradient_checkpointing", err)
    code, _, err = train("--batch-size", "1", "--accumulate", "2")
    assert code == 0
    assert any("step 2 of 3" in line for line in err.splitlines())
