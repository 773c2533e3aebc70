"""Killed at any call that changes the disk and run again: one line for each step and evaluation in the run's logs."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kdpipe.pipeline.training.samples import FILE as SAMPLES
from kdpipe.schemas.train_settings import TrainSettings
from support.faults import count_calls, fault_at, killed, path_of
from support.stage_two import RecordingProgress, history, run, settings_for
from support.tiny import unsynced

# Also the calls with which metrics.jsonl is written and cut.
WRITES = ("write", "ftruncate", "truncate", "replace")
SHAPE: dict[str, Any] = {
    "run": {"max_steps": 4, "batch_size": 2, "accumulate": 1},
    "evaluation": {"every": 1, "limit": 1, "samples": 2, "sample_tokens": 4},
    "saving": {"every": 2, "keep": 1},
}
EXPECTED = [(step, kind) for step in range(1, 5) for kind in ("accept", "evaluation")]
CHILD = """
import sys
from kdpipe.pipeline.train import train
from kdpipe.schemas.train_settings import TrainSettings, TrainOptions
from support.recording import RecordingProgress
train(TrainSettings.model_validate_json(sys.argv[1]), TrainOptions(), RecordingProgress())
"""


def in_child(work: Callable[[], object]) -> int:
    """Do some work in a child that may be killed; its exit status."""
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            work()
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def shaped(folder: Path, out: Path, **changes: Any) -> TrainSettings:
    return settings_for(folder, **(SHAPE | changes)).model_copy(update={"out": str(out)})


def number_of_calls(folder: Path, tmp_path: Path, **changes: Any) -> int:
    with unsynced():
        return count_calls(lambda: run(shaped(folder, tmp_path / "counted", **changes)), WRITES)


def killed_at(number: int, settings: TrainSettings) -> int:
    """Run until a call, where the process is killed; its status."""

    def dies() -> None:
        with unsynced(), fault_at(number, killed(lambda _path: None, "before"), WRITES):
            run(settings)

    return in_child(dies)


def assert_whole(folder: Path, tmp_path: Path, numbers: list[int], **changes: Any) -> None:
    """Kill a run at each of some calls, and hold what it is at its end against the undisturbed one."""
    whole = history(tmp_path / "counted")
    assert [(step, kind) for step, kind, _ in whole] == EXPECTED
    for number in numbers:
        out = tmp_path / "run"
        shutil.rmtree(out, ignore_errors=True)
        assert killed_at(number, shaped(folder, out, **changes)) == signal.SIGKILL, number
        progress = RecordingProgress()
        run(shaped(folder, out, **changes), progress)
        assert history(out) == whole, number
        assert (out / SAMPLES).read_bytes() == (tmp_path / "counted" / SAMPLES).read_bytes(), number
        assert not [line for line in progress.warnings if "metrics" in line], number


@pytest.mark.slow
def test_a_run_killed_after_its_last_checkpoint_has_one_line_of_its_last_evaluation(
    folder: Path, tmp_path: Path
) -> None:
    n_calls = number_of_calls(folder, tmp_path)
    assert_whole(folder, tmp_path, [n_calls - 40, n_calls - 20])


def test_lines_are_on_disk_before_the_checkpoint_that_counts_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No power cut leaves a checkpoint and takes a line of it, or the file's name."""
    out, events = tmp_path / "run", list[str]()
    names = {str(out / "metrics.jsonl"): "lines", str(out / SAMPLES): "samples", str(out): "name"}

    def noted(kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*words: Any, **options: Any) -> Any:
            path = path_of(kind, words, options)
            if path in names:
                events.append(f"{kind} {names[path]}")
            elif kind == "rename" and Path(path).parent == out / "checkpoints":
                events.append("checkpoint")
            return real(*words, **options)

        return call

    for kind in ("write", "fsync", "rename"):
        monkeypatch.setattr(os, kind, noted(kind, getattr(os, kind)))
    run(shaped(folder, out))
    assert events.count("checkpoint") >= 3 and events.count("write lines") == len(EXPECTED)
    assert events.count("write samples") == 4
    durable = {"lines": True, "samples": True, "name": False}
    for event in events:
        kind, _, what = event.partition(" ")
        if event == "checkpoint":
            assert all(durable.values())
        else:
            durable[what] = kind == "fsync"


@pytest.mark.slow
def test_a_run_killed_around_its_last_save_has_one_line_per_step_and_evaluation(folder: Path, tmp_path: Path) -> None:
    n_calls = number_of_calls(folder, tmp_path)
    assert_whole(folder, tmp_path, list(range(n_calls - 116, n_calls, 2)))


@pytest.mark.slow
def test_a_run_that_saves_its_best_student_survives_a_kill_anywhere(folder: Path, tmp_path: Path) -> None:
    changes = {"saving": SHAPE["saving"] | {"final": "best"}}
    n_calls = number_of_calls(folder, tmp_path, **changes)
    numbers = random.Random(0).sample(range(20, n_calls), 12)
    assert_whole(folder, tmp_path, numbers, **changes)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_run_killed_at_every_call_has_one_line_per_step_and_evaluation(folder: Path, tmp_path: Path) -> None:
    n_calls = number_of_calls(folder, tmp_path)
    assert_whole(folder, tmp_path, list(range(1, n_calls + 1)))


def assert_killed_rounds(folder: Path, tmp_path: Path, n_rounds: int) -> None:
    """Processes killed by SIGKILL at any moment once so many lines are written, and run again until one is left."""
    run(shaped(folder, tmp_path / "counted"))
    whole = history(tmp_path / "counted")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    for number in range(n_rounds):
        out, rng = tmp_path / f"round-{number}", random.Random(number)
        words = [sys.executable, "-c", CHILD, shaped(folder, out).model_dump_json()]
        child = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        n_lines, metrics = rng.randrange(1, len(whole) + 1), out / "metrics.jsonl"
        while child.poll() is None and not (metrics.exists() and metrics.read_bytes().count(b"\n") >= n_lines):
            time.sleep(0.001)
        time.sleep(rng.random() * 0.05)
        child.kill()
        child.wait()
        run(shaped(folder, out))
        assert history(out) == whole, number


@pytest.mark.slow
def test_processes_killed_at_any_moment_leave_one_line_per_step_and_evaluation(folder: Path, tmp_path: Path) -> None:
    assert_killed_rounds(folder, tmp_path, 2)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_many_processes_killed_at_any_moment_leave_one_line_per_step(folder: Path, tmp_path: Path) -> None:
    assert_killed_rounds(folder, tmp_path, 30)
