"""Stopped anywhere and run again: the same losses and the same weights, to the bit, on the same number of threads."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kdpipe.pipeline.batches import prefetch as ahead
from kdpipe.pipeline.batches.micro_batch import MicroBatch, StepBatch
from kdpipe.pipeline.batches.prefetch import StepLoader
from kdpipe.schemas.errors import Interrupted
from kdpipe.schemas.train_settings import TrainSettings
from support.stage_two import RecordingProgress, Stopping, history, losses, run, settings_for, weights

# Seven steps of eight sequences: more than an epoch of the small cache, so that a stop comes in the middle of one.
SHAPE = {
    "run": {"max_steps": 7, "batch_size": 4, "accumulate": 2, "order": "shuffled"},
    "saving": {"every": 2, "keep": 2},
    "losses": {"weights": {"cosine": 0.1}, "hidden": {"router": True}},
    "machine": {"ahead": 3},
}
CHILD = """
import signal, sys
from kdpipe.pipeline.train import train
from kdpipe.schemas.train_settings import TrainSettings, TrainOptions
from support.stage_two import Stopping
settings = TrainSettings.model_validate_json(sys.argv[1])
train(settings, TrainOptions(), Stopping(int(sys.argv[2]), signal.SIGKILL))
"""


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> Path:
    run(settings_for(folder, "undisturbed", **SHAPE))
    return folder / "undisturbed"


def assert_same(out: Path, undisturbed: Path) -> None:
    assert losses(out) == losses(undisturbed)
    assert history(out) == history(undisturbed)
    ours, theirs = weights(out), weights(undisturbed)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


@pytest.mark.parametrize(
    ("step", "number"),
    [
        (4, signal.SIGINT),
        *(pytest.param(n, signal.SIGTERM, marks=pytest.mark.slow) for n in (1, 2, 5, 6)),
    ],
)
def test_a_signal_ends_the_run_after_the_step_and_it_can_be_resumed(
    folder: Path, undisturbed: Path, step: int, number: signal.Signals
) -> None:
    out = f"stopped-{step}-{number}"
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"interrupted at step {step} of 7") as stopped:
        run(settings_for(folder, out, **SHAPE), Stopping(step, number))
    assert stopped.value.exit_code == 75 and signal.getsignal(number) is before
    assert not (folder / out / "final").exists()
    progress = RecordingProgress()
    report = run(settings_for(folder, out, **SHAPE), progress)
    assert (report.resumed_from, progress.tasks["train"].total, progress.tasks["train"].done) == (step, 7, step)
    assert_same(folder / out, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 3, 6])
def test_a_killed_run_resumes_from_its_last_checkpoint(folder: Path, undisturbed: Path, step: int) -> None:
    out = f"killed-{step}"
    settings = settings_for(folder, out, **SHAPE)
    killed = start(settings, step)
    assert killed == -signal.SIGKILL
    report = run(settings)
    assert report.resumed_from == ((step - 1) // 2 * 2 or None)
    assert_same(folder / out, undisturbed)


def start(settings: TrainSettings, step: int) -> int:
    """A run in a process of its own that is killed after a step; its exit code."""
    words = [sys.executable, "-c", CHILD, settings.model_dump_json(), str(step)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(words, env=environment, check=False, capture_output=True).returncode


WAYS: dict[str, dict[str, Any]] = {
    "muon in phases": {
        "optimizer": {"kind": "muon", "rates": {"router": 1e-2}},
        "losses": {"alpha_schedule": "wsd", "weights": {"cosine": 0.1}, "hidden": {"router": True}},
        "schedule": {"kind": "wsd"},
        "run": {"max_steps": 7, "phases": [{"until": 0.5, "order": "length"}, {"until": 1.0, "temperature": 2.0}]},
    },
    "scaled in fp16": {"machine": {"precision": "fp16"}, "student": {"gradient_checkpointing": True}},
    "chosen rows": {"losses": {"select": [{"term": "kd", "by": "student_entropy", "keep": "highest", "share": 0.4}]}},
    "guarded": {"guard": {"preset": "ultra-stable", "skip_gradient_norm": 0.4, "patience": 50}},
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_kind_of_training_resumes_to_the_bit(folder: Path, way: str) -> None:
    shape = {section: SHAPE.get(section, {}) | WAYS[way].get(section, {}) for section in SHAPE | WAYS[way]}
    whole, stopped = (settings_for(folder, f"{way} {which}", **shape) for which in ("whole", "stopped"))
    run(whole)
    for step in (2, 5):
        with pytest.raises(Interrupted):
            run(stopped, Stopping(step, signal.SIGTERM))
    run(stopped)
    assert_same(folder / f"{way} stopped", folder / f"{way} whole")


@pytest.mark.slow
def test_a_run_stopped_before_a_rollback_rolls_back_to_the_same_student(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint of the stop is newer than the one that the undisturbed run goes back to."""
    take = StepLoader.take

    def broken(loader: StepLoader, begin: int, *words: Any) -> StepBatch:
        batch = take(loader, begin, *words)
        first = batch.batches[0]
        if first.targets is None or begin not in (24, 32, 40):
            return batch
        targets = dataclasses.replace(first.targets, weights_NK=first.targets.weights_NK * float("nan"))
        return dataclasses.replace(batch, batches=(dataclasses.replace(first, targets=targets), *batch.batches[1:]))

    shape = SHAPE | {"guard": {"patience": 3}, "evaluation": {"every": 7}, "saving": {"every": 2, "keep": 1}}
    with monkeypatch.context() as patched:
        patched.setattr(StepLoader, "take", broken)
        whole, stopped = (
            settings_for(folder, **shape).model_copy(update={"out": str(out)})
            for out in (tmp_path / "whole", tmp_path / "stopped")
        )
        progress = RecordingProgress()
        assert run(whole, progress).rollbacks == 1
        with pytest.raises(Interrupted):
            run(stopped, Stopping(3, signal.SIGTERM))
        again = RecordingProgress()
        assert run(stopped, again).rollbacks == 1
    assert [line for line in progress.warnings if "rolled back to step 2" in line]
    assert progress.warnings[-1] == again.warnings[-1]
    assert_same(tmp_path / "stopped", tmp_path / "whole")


def test_a_resumed_run_does_not_read_sequences_it_has_used(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Start-up takes no longer the further a run has come."""
    shape = SHAPE | {"evaluation": {"every": 7}, "losses": {}, "machine": {"ahead": 1}}
    settings = settings_for(folder, **shape).model_copy(update={"out": str(tmp_path / "run")})
    with pytest.raises(Interrupted):
        run(settings, Stopping(6, signal.SIGTERM))
    made: list[tuple[int, ...]] = []
    make = ahead.make_batch

    def counted(cache: Any, numbers: tuple[int, ...], *words: Any, **named: Any) -> MicroBatch:
        if cache.split_name == "train":
            made.append(numbers)
        return make(cache, numbers, *words, **named)

    monkeypatch.setattr(ahead, "make_batch", counted)
    run(settings)
    assert len(made) == 2 + 1  # the two batches of the last step, and one ahead


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(folder: Path, undisturbed: Path) -> None:
    settings = settings_for(folder, "broken", **SHAPE)
    with pytest.raises(Interrupted):
        run(settings, Stopping(5, signal.SIGTERM))
    path = folder / "broken" / "checkpoints" / "step-000005" / "optimizer.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    progress = RecordingProgress()
    assert run(settings, progress).resumed_from == 4
    assert any("step-000005 is damaged" in line and "optimizer.safetensors" in line for line in progress.warnings)
    assert_same(folder / "broken", undisturbed)


@pytest.mark.slow
def test_a_checkpoint_can_be_chosen(folder: Path, undisturbed: Path) -> None:
    settings = settings_for(folder, "chosen", **SHAPE)
    with pytest.raises(Interrupted):
        run(settings, Stopping(5, signal.SIGTERM))
    assert run(settings, resume_from="4").resumed_from == 4
    assert_same(folder / "chosen", undisturbed)


@pytest.mark.slow
def test_another_number_of_threads_is_reported(folder: Path) -> None:
    settings = settings_for(folder, "threads", **SHAPE)
    with pytest.raises(Interrupted):
        run(settings, Stopping(2, signal.SIGTERM))
    more = settings.model_copy(update={"machine": settings.machine.model_copy(update={"threads": 2})})
    progress = RecordingProgress()
    try:
        run(more, progress)
    finally:
        torch.set_num_threads(1)
    assert any("used 1 threads and resumes with 2" in line for line in progress.warnings)


@pytest.mark.slow
def test_overwriting_starts_over(folder: Path) -> None:
    settings = settings_for(folder, "again", **SHAPE)
    with pytest.raises(Interrupted):
        run(settings, Stopping(3, signal.SIGTERM))
    other = settings.model_copy(update={"seed": 5})
    assert run(other, overwrite=True).resumed_from is None
    assert json.loads((folder / "again" / "run.json").read_text())["settings"]["seed"] == 5
