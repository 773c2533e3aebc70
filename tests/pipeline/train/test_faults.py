"""Every fault at every place: found, named, the step skipped whole and counted; repeats lead back, then to a stop."""

import dataclasses
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kdpipe.pipeline.batches import prefetch as ahead
from kdpipe.pipeline.batches.micro_batch import MicroBatch, StepBatch, with_tensors
from kdpipe.pipeline.batches.prefetch import StepLoader
from kdpipe.pipeline.losses import divergences as logit
from kdpipe.pipeline.losses.hidden.hidden_objective import HiddenObjective
from kdpipe.pipeline.students.student import Student, StudentStates
from kdpipe.pipeline.training import loop, run_inputs, train_state
from kdpipe.pipeline.training.train_state import TrainState
from kdpipe.schemas.errors import ConfigError, Interrupted, KdpipeError
from kdpipe.schemas.train_settings import TrainSettings
from support.stage_two import STUDENT, RecordingProgress, Stopping, losses, make_cache, run, settings_for, weights

NAN = float("nan")
BAD_STEP = 3
SETTINGS: dict[str, Any] = {
    "losses": {"logit": "jsd", "weights": {"forward_kl": 0.5, "cosine": 0.1}},
    "run": {"max_steps": 6, "batch_size": 4, "accumulate": 2},
    "evaluation": {"every": 6},
}


class Attempts:
    """Counts the steps tried, by the batches taken, and plants a fault at some of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, due: Callable[[int], bool]) -> None:
        self.n, self._due = 0, due
        take = StepLoader.take

        def counted(loader: StepLoader, *words: Any) -> StepBatch:
            self.n += 1
            return take(loader, *words)

        monkeypatch.setattr(StepLoader, "take", counted)

    @property
    def now(self) -> bool:
        return self._due(self.n)


Plant = Callable[[pytest.MonkeyPatch, Attempts], None]


def _of_states(value: float) -> Plant:
    def plant(monkeypatch: pytest.MonkeyPatch, attempts: Attempts) -> None:
        states = Student.states

        def broken(student: Student, batch: MicroBatch, *words: Any) -> StudentStates:
            found = states(student, batch, *words)
            if not attempts.now or not student.model.training:
                return found
            rows = found.rows_NH.clone()
            rows[0] = value
            return dataclasses.replace(found, rows_NH=rows)

        monkeypatch.setattr(Student, "states", broken)

    return plant


_in_states = _of_states(NAN)
# Finite itself; a head whose weights are above 1 makes logits of it that are not.
_in_logits = _of_states(3e38)


def _in_batches(spoil: Callable[[MicroBatch], MicroBatch]) -> Plant:
    def plant(monkeypatch: pytest.MonkeyPatch, attempts: Attempts) -> None:
        take = StepLoader.take

        def broken(loader: StepLoader, *words: Any) -> StepBatch:
            batch = take(loader, *words)
            if not attempts.now:
                return batch
            return dataclasses.replace(batch, batches=(spoil(batch.batches[0]), *batch.batches[1:]))

        monkeypatch.setattr(StepLoader, "take", broken)

    return plant


def _in_targets(field: str, value: float) -> Plant:
    def spoil(batch: MicroBatch) -> MicroBatch:
        assert batch.targets is not None
        found = getattr(batch.targets, field)
        spoilt = {t: _spoilt(one, value) for t, one in found.items()} if field == "log_z" else _spoilt(found, value)
        return dataclasses.replace(batch, targets=dataclasses.replace(batch.targets, **{field: spoilt}))

    return _in_batches(spoil)


def _in_cached_states(batch: MicroBatch) -> MicroBatch:
    return dataclasses.replace(batch, hidden={layer: _spoilt(one, NAN) for layer, one in batch.hidden.items()})


def _in_pooled_states(batch: MicroBatch) -> MicroBatch:
    return dataclasses.replace(batch, pooled={layer: _spoilt(one, NAN) for layer, one in batch.pooled.items()})


def _spoilt(values: Tensor, value: float) -> Tensor:
    found = values.clone()
    found[0] = value
    return found


def _in_loss(name: str) -> Plant:
    def plant(monkeypatch: pytest.MonkeyPatch, attempts: Attempts) -> None:
        row_loss = logit.row_loss

        def broken(term: Any, *words: Any) -> Tensor:
            found = row_loss(term, *words)
            return found * NAN if attempts.now and term.name == name else found

        monkeypatch.setattr("kdpipe.pipeline.losses.sparse_chunk.row_loss", broken)

    return plant


def _in_hidden(monkeypatch: pytest.MonkeyPatch, attempts: Attempts) -> None:
    forward = HiddenObjective.forward

    def broken(objective: HiddenObjective, *words: Any) -> Any:
        found = forward(objective, *words)
        if not attempts.now:
            return found
        return dataclasses.replace(
            found, total=found.total * NAN, sums={name: value * NAN for name, value in found.sums.items()}
        )

    monkeypatch.setattr(HiddenObjective, "forward", broken)


def _in_gradient(monkeypatch: pytest.MonkeyPatch, attempts: Attempts) -> None:
    go = loop.forward_backward

    def broken(train_state: TrainState, *words: Any) -> Any:
        parameter = train_state.trained[0]
        handle = parameter.register_hook(lambda gradient: gradient * NAN if attempts.now else gradient)
        try:
            return go(train_state, *words)
        finally:
            handle.remove()

    monkeypatch.setattr(loop, "forward_backward", broken)


PLACES: dict[str, tuple[Plant, str]] = {
    "states": (_in_states, "logits (the student's last state) not finite"),
    "weights": (_in_targets("weights_NK", NAN), "targets (weights) not finite"),
    "log-probabilities": (_in_targets("logprobs_NK", NAN), "targets (log-probabilities) not finite"),
    "log_tail": (_in_targets("log_tail_N", NAN), "targets (log_tail) not finite"),
    "entropy": (_in_targets("entropy_N", NAN), "targets (entropy) not finite"),
    "ce": (_in_loss("ce"), "ce (its value) not finite"),
    "jsd": (_in_loss("jsd"), "jsd (its value) not finite"),
    "forward_kl": (_in_loss("forward_kl"), "forward_kl (its value) not finite"),
    "cosine": (_in_hidden, "cosine (its value) not finite"),
    "gradient": (_in_gradient, "gradient (student."),
    "logits": (_in_logits, "logits (the student's logits) not finite"),
    "log_z": (_in_targets("log_z", NAN), "targets (log_z at 2) not finite"),
    "cached states": (_in_batches(_in_cached_states), "targets (hidden state of layer 1) not finite"),
    "cached states beside labels": (_in_batches(_in_cached_states), "targets (hidden state of layer 1) not finite"),
    "pooled states": (_in_batches(_in_pooled_states), "targets (pooled state of layer 1) not finite, sequences "),
    "state": (_in_targets("state_NH", NAN), "targets (state) not finite"),
}
# What a place needs to be there at all.
NEEDED: dict[str, dict[str, Any]] = {
    "logits": {"student": {"name": "wide.json"}},
    "log_z": {"losses": {"temperature": 2.0}},
    "cached states beside labels": {"losses": {"mode": "output", "weights": {"cosine": 0.1}}},
    "pooled states": {"losses": {"mode": "output", "weights": {"document_relations": 0.1}}},
    "state": {"losses": {"logit": "forward_kl"}, "kept": "states"},
}

# One of each kind is in the fast suite.
QUICK = ("states", "weights", "jsd", "gradient")


@pytest.mark.slow
@pytest.mark.parametrize(
    "place", [pytest.param(place, marks=() if place in QUICK else pytest.mark.slow) for place in PLACES]
)
def test_a_fault_is_named_and_its_whole_step_is_skipped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    plant, named = PLACES[place]
    plant(monkeypatch, Attempts(monkeypatch, lambda n: n == BAD_STEP))
    progress = RecordingProgress()
    settings = _needed(folder, place).model_copy(update={"out": str(tmp_path / "run")})
    report = run(settings, progress)
    assert (report.steps, report.skipped, report.rollbacks) == (6, 1, 0)
    assert [line for line in progress.warnings if named in line], progress.warnings
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "verdict" in line]
    assert [line["verdict"] for line in steps] == ["accept", "accept", "skip", "accept", "accept", "accept", "accept"]
    assert steps[2]["step"] == 2 and steps[2]["consecutive_skips"] == 1 and "nonfinite" in steps[2]
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "run").values())


def _needed(folder: Path, place: str) -> TrainSettings:
    changes = dict(NEEDED.get(place, {}))
    kept = str(changes.pop("kept", "cache"))
    if kept != "cache" and not (folder / kept).exists():
        make_cache(folder, kept, targets={"kind": "state", "temperatures": ()})
    if "student" in changes:
        (folder / "wide.json").write_text(json.dumps(STUDENT | {"initializer_range": 1.0}))
        changes["student"] = {"name": str(folder / "wide.json")}
    return settings_for(folder, kept=kept, **(SETTINGS | changes))


@pytest.mark.slow
def test_a_skipped_step_changes_no_parameter(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run with a fault is the run that never met the sequences of that step."""
    settings = settings_for(folder, student={"name": _sure(folder)}, **SETTINGS)
    with _skipping(monkeypatch, 8):
        run(settings.model_copy(update={"out": str(tmp_path / "without")}))
    _in_states(monkeypatch, Attempts(monkeypatch, lambda n: n == BAD_STEP))
    run(settings.model_copy(update={"out": str(tmp_path / "with")}))
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    for name, value in weights(tmp_path / "without").items():
        assert torch.equal(value, weights(tmp_path / "with")[name]), name


@contextmanager
def _skipping(monkeypatch: pytest.MonkeyPatch, n_sequences: int) -> Iterator[None]:
    """From the third step on, some sequences are passed over."""
    take = StepLoader.take

    def moved(loader: StepLoader, begin: int, end: int, order: Any) -> StepBatch:
        shift = n_sequences if begin >= (BAD_STEP - 1) * n_sequences else 0
        return take(loader, begin + shift, end + shift, order)

    with monkeypatch.context() as patched:
        patched.setattr(StepLoader, "take", moved)
        yield


def _sure(folder: Path) -> str:
    """A student without dropout: a step that is tried draws from the generator."""
    settings_for(folder)
    config = json.loads((folder / "student.json").read_text())
    (folder / "sure.json").write_text(json.dumps(config | {"attention_dropout": 0.0}))
    return str(folder / "sure.json")


@pytest.mark.slow
def test_repeated_faults_roll_back_to_a_good_student(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _in_states(monkeypatch, Attempts(monkeypatch, lambda n: 4 <= n <= 6))
    changes = SETTINGS | {"guard": {"patience": 3, "ce_only_steps": 1}, "saving": {"every": 2}}
    progress = RecordingProgress()
    report = run(settings_for(folder, **changes).model_copy(update={"out": str(tmp_path / "run")}), progress)
    assert (report.steps, report.skipped, report.rollbacks) == (6, 3, 1)
    assert any("rolled back to step 2" in line and "0.5 of the learning rate" in line for line in progress.warnings)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    after = [line for line in lines if line.get("rollbacks") == 1 and line.get("verdict") == "accept"]
    assert list(after[0]["terms"]) == ["ce"] and len(after[1]["terms"]) > 1
    # Step 3 was undone, and is taken once more; what was skipped stays counted.
    assert [(line["step"], line["verdict"]) for line in lines if "verdict" in line] == [
        (1, "accept"), (2, "accept"), (3, "undone"), (3, "skip"), (3, "skip"), (2, "rollback"),
        (3, "accept"), (4, "accept"), (5, "accept"), (6, "accept"),
    ]  # fmt: skip
    assert lines[-2]["positions"] == report.positions == _positions(lines)
    assert (lines[-2]["skipped"], lines[-2]["success_rate"]) == (3, 0.6)


@pytest.mark.slow
def test_gradient_spikes_are_skipped_also_right_after_a_phase_change(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, attempts = loop.forward_backward, Attempts(monkeypatch, lambda n: n in (9, 12))

    def spiked(train_state: TrainState, *words: Any) -> Any:
        hooks = [
            one.register_hook(lambda gradient: gradient * (1e6 if attempts.now else 1)) for one in train_state.trained
        ]
        try:
            return go(train_state, *words)
        finally:
            for hook in hooks:
                hook.remove()

    monkeypatch.setattr(loop, "forward_backward", spiked)
    run_settings = {"max_steps": 12, "batch_size": 2, "accumulate": 1}
    phases = [{"until": 10 / 12}, {"until": 1.0, "temperature": 2.0}]
    settings = settings_for(folder, run=run_settings | {"phases": phases}, evaluation={"every": 12})
    report = run(settings.model_copy(update={"out": str(tmp_path / "run")}))
    assert (report.steps, report.skipped, report.rollbacks) == (12, 2, 0)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    skipped = [line for line in lines if line.get("verdict") == "skip"]
    assert [line["step"] for line in skipped] == [8, 10]
    assert [line["temperature"] for line in skipped] == [1.0, 2.0]
    assert all("guard.median_factor" in line["why"] for line in skipped)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [None, 4])
def test_a_rollback_across_a_phase_repeats_that_phase(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int | None
) -> None:
    """Back to step 3, of the first phase; run again after a stop, it is the same history."""
    take = StepLoader.take

    def broken(loader: StepLoader, begin: int, *words: Any) -> StepBatch:
        batch = take(loader, begin, *words)
        return _in_first_targets(batch) if begin in (32, 40, 48) else batch

    monkeypatch.setattr(StepLoader, "take", broken)
    shape = {
        "run": {"max_steps": 7, "phases": [{"until": 4 / 7, "alpha": 0.5}, {"until": 1.0}]},
        "guard": {"patience": 3},
        "evaluation": {"every": 7},
        "saving": {"every": 3},
    }
    settings = settings_for(folder, **shape).model_copy(update={"out": str(tmp_path / "run")})
    if stop is not None:
        with pytest.raises(Interrupted):
            run(settings, Stopping(stop, signal.SIGTERM))
    assert run(settings).rollbacks == 1
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["verdict"], line["place"], line["terms"]["ce"]["weight"])
            for line in lines if "verdict" in line] == [
        (1, "accept", 8, 0.5), (2, "accept", 16, 0.5), (3, "accept", 24, 0.5), (4, "undone", 32, 0.5),
        (4, "skip", 40, 0.1), (4, "skip", 48, 0.1), (3, "rollback", 56, 0.1),
        (4, "accept", 64, 0.5), (5, "accept", 72, 0.1), (6, "accept", 80, 0.1), (7, "accept", 88, 0.1),
    ]  # fmt: skip


def _in_first_targets(batch: StepBatch) -> StepBatch:
    first = batch.batches[0]
    assert first.targets is not None
    targets = dataclasses.replace(first.targets, weights_NK=first.targets.weights_NK * NAN)
    return dataclasses.replace(batch, batches=(dataclasses.replace(first, targets=targets), *batch.batches[1:]))


@pytest.mark.slow
def test_persistent_faults_stop_the_run_with_a_checkpoint_and_advice(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _in_states(monkeypatch, Attempts(monkeypatch, lambda n: n >= 4))
    changes = SETTINGS | {"guard": {"patience": 2, "rollbacks": 1}, "saving": {"every": 2}}
    with pytest.raises(KdpipeError, match=r"step 2: 2 bad steps.*row.*1 rollback") as error:
        run(settings_for(folder, **changes).model_copy(update={"out": str(tmp_path / "run")}))
    assert error.value.exit_code == 1 and "--precision" in str(error.value.hint)
    assert "--resume-from STEP" in str(error.value.hint)
    assert list((tmp_path / "run" / "checkpoints").iterdir())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    verdicts = [(line["step"], line["verdict"]) for line in lines if "verdict" in line]
    assert verdicts[2:] == [(3, "undone"), (3, "skip"), (2, "rollback"), (2, "skip"), (2, "stop")]


@pytest.mark.slow
def test_a_stopped_run_can_be_steered_from_a_checkpoint(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = SETTINGS | {"guard": {"patience": 2, "rollbacks": 0}, "saving": {"every": 2}}
    settings = settings_for(folder, **changes).model_copy(update={"out": str(tmp_path / "run")})
    with monkeypatch.context() as patched:
        _in_states(patched, Attempts(patched, lambda n: n >= 4))
        with pytest.raises(KdpipeError, match=r"training stopped.*step 3"):
            run(settings)
    slower = settings.model_copy(update={"optimizer": settings.optimizer.model_copy(update={"lr": 1e-3})})
    with pytest.raises(ConfigError, match=r"optimizer\.lr: 0\.003 -> 0\.001") as refused:
        run(slower)
    assert "--resume-from" in str(refused.value.hint)
    progress = RecordingProgress()
    report = run(slower, progress, resume_from="2")
    assert (report.resumed_from, report.steps, report.rollbacks) == (2, 6, 0)
    assert [line for line in progress.messages if line.endswith("optimizer.lr: 0.003 -> 0.001")]
    assert run(slower).steps == 6


@pytest.mark.slow
@pytest.mark.parametrize("bad", [4, 6], ids=["on the way", "the last step"])
def test_nonfinite_parameters_roll_back_at_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: int
) -> None:
    applied = loop.apply
    attempts = Attempts(monkeypatch, lambda n: n == bad)

    def broken(train_state: TrainState, *words: Any) -> None:
        applied(train_state, *words)
        if attempts.now:
            train_state.trained[0].data[0] = NAN

    monkeypatch.setattr(loop, "apply", broken)
    progress = RecordingProgress()
    changes = SETTINGS | {"saving": {"every": 4}}
    report = run(settings_for(folder, **changes).model_copy(update={"out": str(tmp_path / "run")}), progress)
    assert (report.steps, report.rollbacks) == (6, 1)
    # Each step that counts has one line, also those that were taken once more; the rollback has its own.
    assert [step for step, _ in losses(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    back = lines.index(next(line for line in lines if line.get("verdict") == "rollback"))
    good = 0 if bad == 4 else 4
    assert (lines[back]["step"], lines[back]["rollbacks"]) == (good, 1) and "parameters (" in lines[back]["why"]
    undone = [line["step"] for line in lines[:back] if line.get("verdict") == "undone"]
    assert undone == list(range(good + 1, bad + 1))
    assert [line["step"] for line in lines if "evaluation" in line] == [6]
    assert report.positions == lines[-2]["positions"] == _positions(lines)
    assert any(f"step {bad}: parameters (student." in line for line in progress.warnings), progress.warnings
    # The final student has made all steps, is evaluated as it is, and can be resumed.
    assert (tmp_path / "run" / "checkpoints" / "step-000006").is_dir()
    assert report.evaluation is not None and report.evaluation["step"] == 6
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "run").values())


def _positions(lines: list[dict[str, Any]]) -> int:
    """The positions of the steps that count, from the counts of their terms."""
    return sum(line["terms"]["ce"]["count"] for line in lines if line.get("verdict") == "accept")


@pytest.mark.slow
def test_an_overflow_is_handled_by_the_scaler_and_is_no_fault(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients too large for 16 bits at the first scale: halved until they fit, and nothing is counted as a fault."""
    build = train_state.build_train_state

    def at_a_large_scale(*arguments: Any) -> TrainState:
        built = build(*arguments)
        assert built.scaler is not None
        return dataclasses.replace(built, scaler=torch.amp.GradScaler("cpu", init_scale=2.0**40))

    monkeypatch.setattr("kdpipe.pipeline.training.training_run.build_train_state", at_a_large_scale)
    progress = RecordingProgress()
    settings = settings_for(folder, machine={"precision": "fp16"}).model_copy(update={"out": str(tmp_path / "run")})
    report = run(settings, progress)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    verdicts = [line["verdict"] for line in lines if "verdict" in line]
    assert (report.steps, report.rollbacks) == (6, 0)
    assert verdicts.count("overflow") == report.skipped > 3
    assert "skip" not in verdicts and not [line for line in progress.warnings if "skipped" in line]
    assert [line for line in progress.messages if "loss scale of 1.09951e+12" in line]
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "run").values())


@pytest.mark.parametrize("precision", ["fp16", pytest.param("fp32", marks=pytest.mark.slow)])
def test_a_step_without_trained_positions_changes_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    make = ahead.make_batch

    def without_rows(*words: Any, **named: Any) -> MicroBatch:
        batch = make(*words, **named)
        none = torch.zeros(len(batch.labels_N), dtype=torch.bool)
        rows = {name: getattr(batch, name)[none] for name in ("places_N", "sequence_N", "labels_N")}
        targets = None if batch.targets is None else with_tensors(batch.targets, lambda one: one[none])
        return dataclasses.replace(batch, targets=targets, **rows)

    settings = settings_for(folder, machine={"precision": precision}, run={"max_steps": 2}, saving={"every": 1})
    settings = settings.model_copy(update={"out": str(tmp_path / "run")})
    monkeypatch.setattr(run_inputs, "open_validation", lambda _: None)
    monkeypatch.setattr(ahead, "make_batch", without_rows)
    assert run(settings).positions == 0
    first, last = (load_file(path / "model.safetensors") for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert all(torch.equal(first[name], last[name]) for name in first)
