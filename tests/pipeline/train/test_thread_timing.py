"""`machine.threads=auto`: what is timed, what is kept, and that a run is the same to the bit whether it was timed."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kdpipe.pipeline.config_file import read_file
from kdpipe.pipeline.training import checkpoints, thread_choice
from kdpipe.schemas.errors import Interrupted
from kdpipe.schemas.train_settings import TrainSettings
from support.stage_two import RecordingProgress, Stopping, history, run, settings_for, weights

SHAPE: dict[str, Any] = {
    "run": {"max_steps": 4, "batch_size": 2, "accumulate": 1},
    "evaluation": {"every": 4, "limit": 1},
    "saving": {"every": 2},
}
AUTO = {"machine": {"threads": "auto"}}


def shaped(folder: Path, out: Path, **changes: Any) -> TrainSettings:
    sections = {name: SHAPE.get(name, {}) | changes.get(name, {}) for name in SHAPE | changes}
    return settings_for(folder, **sections).model_copy(update={"out": str(out)})


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], list[int]]:
    """Two usable cores, a run that is long enough, and a clock by which a pass takes so long with one and with two."""

    def prepared(one: float, two: float) -> list[int]:
        passes: list[int] = []
        now = [0.0]
        real = thread_choice.forward_backward

        def counted(*words: Any) -> Any:
            passes.append(torch.get_num_threads())
            now[0] += {1: one, 2: two}[passes[-1]]
            return real(*words)

        monkeypatch.setattr(thread_choice, "forward_backward", counted)
        monkeypatch.setattr(thread_choice, "perf_counter", lambda: now[0])
        monkeypatch.setattr(thread_choice, "usable_cpus", lambda: 2)
        monkeypatch.setattr(thread_choice, "WORTH", 0)
        return passes

    return prepared


def threads_line(progress: RecordingProgress) -> str:
    [line] = [line for line in progress.messages if line.startswith("threads ")]
    return line


@pytest.mark.parametrize(
    ("one", "two", "n"), [(0.25, 0.5, 1), (0.5, 0.25, 2), pytest.param(0.25, 0.25, 1, marks=pytest.mark.slow)]
)
def test_the_faster_number_of_threads_is_used_printed_and_stored(
    folder: Path, tmp_path: Path, timed: Callable[[float, float], list[int]], one: float, two: float, n: int
) -> None:
    passes, progress, out = timed(one, two), RecordingProgress(), tmp_path / "run"
    run(shaped(folder, out, **AUTO), progress)
    assert passes == [1, 2] * (1 + thread_choice.ROUNDS)
    assert threads_line(progress) == f"threads     {n}: a step takes {one:g} s with 1, {two:g} s with 2"
    assert torch.get_num_threads() == n
    assert {checkpoints.load_state(path).threads for path in checkpoints.listed(out)} == {n}
    assert read_file(out / "config.yaml")["machine"]["threads"] == n


@pytest.mark.slow
def test_timing_threads_leaves_a_run_bit_identical(
    folder: Path, tmp_path: Path, timed: Callable[[float, float], list[int]]
) -> None:
    """Dropout draws, accumulation, states met by maps and a router, and a scaled loss: nothing notices the timing."""
    losses = {"weights": {"cosine": 0.1}, "hidden": {"router": True}}
    changes = {"losses": losses, "run": {"batch_size": 2, "accumulate": 2}}
    run(shaped(folder, tmp_path / "set", **changes, machine={"threads": 1, "precision": "fp16"}))
    passes = timed(0.25, 0.5)
    run(shaped(folder, tmp_path / "timed", **changes, machine={"threads": "auto", "precision": "fp16"}))
    assert passes
    assert history(tmp_path / "timed") == history(tmp_path / "set")
    ours, theirs = weights(tmp_path / "timed"), weights(tmp_path / "set")
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.slow
def test_a_resumed_run_is_not_timed_again(
    folder: Path, tmp_path: Path, timed: Callable[[float, float], list[int]]
) -> None:
    passes, progress = timed(0.25, 0.5), RecordingProgress()
    run(shaped(folder, tmp_path / "whole", **AUTO))
    with pytest.raises(Interrupted):
        run(shaped(folder, tmp_path / "run", **AUTO), Stopping(3, signal.SIGTERM))
    passes.clear()
    # Timed now it would be two.
    again = timed(0.5, 0.25)
    run(shaped(folder, tmp_path / "run", **AUTO), progress)
    assert not passes and not again
    assert threads_line(progress) == "threads     1: as before step 3"
    assert history(tmp_path / "run") == history(tmp_path / "whole")
    assert all(torch.equal(v, weights(tmp_path / "whole")[n]) for n, v in weights(tmp_path / "run").items())


@pytest.mark.parametrize(
    ("machine", "patched", "line"),
    [
        ({"threads": 2}, {}, "threads     2: machine.threads is set"),
        ({"threads": "auto"}, {"usable_cpus": lambda: 1}, "threads     1: one usable core"),
        (
            {"threads": "auto"},
            {"WORTH": 10},
            "threads     2: all usable cores; the run has 4 forward passes, and timing pays off from 80",
        ),
    ],
    ids=["set", "one core", "short"],
)
def test_threads_are_not_timed_without_need(
    folder: Path,
    tmp_path: Path,
    timed: Callable[[float, float], list[int]],
    monkeypatch: pytest.MonkeyPatch,
    machine: dict[str, Any],
    patched: dict[str, Any],
    line: str,
) -> None:
    passes, progress = timed(0.25, 0.5), RecordingProgress()
    for name, value in patched.items():
        monkeypatch.setattr(thread_choice, name, value)
    run(shaped(folder, tmp_path / "run", machine=machine), progress)
    assert not passes and threads_line(progress) == line


@pytest.mark.slow
def test_a_signal_during_timing_ends_the_run_before_its_first_step(
    folder: Path, tmp_path: Path, timed: Callable[[float, float], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = timed(0.25, 0.5)
    counted = thread_choice.forward_backward

    def requested(*words: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return counted(*words)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match=r"interrupted.*first step"):
        patch.setattr(thread_choice, "forward_backward", requested)
        run(shaped(folder, tmp_path / "run", **AUTO))
    assert passes == [1]
    assert run(shaped(folder, tmp_path / "run", **AUTO)).steps == 4
