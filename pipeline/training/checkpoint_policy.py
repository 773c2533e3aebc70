"""The keeper: checkpoints and evaluations of a run, when they are due, and the way back to a good one.

In: a `PreparedRun` run, its folder. Out: checkpoints, evaluations in the log, a learner as it was at a checkpoint.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from kdpipe.pipeline.training import checkpoints
from kdpipe.pipeline.training import state_tensors as states
from kdpipe.pipeline.training.checkpoints import CheckpointContents
from kdpipe.pipeline.training.optimizers import forget, moments, restore_moments
from kdpipe.pipeline.training.prepare import PreparedRun
from kdpipe.pipeline.training.step import StepResult
from kdpipe.schemas.checkpoint import Best, LoopState, MetricsState, RunRecord
from kdpipe.schemas.choices import BestMetric
from kdpipe.schemas.errors import KdpipeError
from kdpipe.schemas.train_report import Evaluation

# Metrics of which more is better.
RISING: frozenset[BestMetric] = frozenset({"top1_agreement"})
Measure = Callable[[LoopState, StepResult | None], Evaluation]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The folder of a run and which run it is, whom to warn, how far its metrics are once on the disk, and how they go
    back to a step."""

    folder: Path
    run: RunRecord
    warn: Callable[[str], None]
    settled: Callable[[], MetricsState]
    rewind: Callable[[int], None]


class CheckpointPolicy:
    """Knows the folder of a run; `measure` evaluates the student as it is, None where there is nothing to ask."""

    def __init__(self, prepared: PreparedRun, place: "Place", measure: Measure | None) -> None:
        self._run, self._folder, self._record, self._warn = prepared, place.folder, place.run, place.warn
        self._settled, self._rewind, self._measure = place.settled, place.rewind, measure
        self._learner, self._plan = prepared.train_state, prepared.plan

    def evaluation_is_due(self, step: int) -> bool:
        """Every so many steps, and at the end."""
        return self._measure is not None and (step % self._plan.evaluate_every == 0 or step == self._plan.n_steps)

    def saving_is_due(self, step: int) -> bool:
        """Every so many steps, at the end, and where the guard wants a snapshot."""
        snapshot = self._run.guard.snapshot_every
        often = step % self._plan.save_every == 0 or (snapshot is not None and step % snapshot == 0)
        return often or step == self._plan.n_steps

    def fall_begins(self, step: int) -> bool:
        """Whether the next step is the first of the decay of a `wsd` schedule, before which a longer run continues."""
        return step == self._plan.saved_before_fall

    def anything_is_due(self, step: int) -> bool:
        """Whether the student is to be looked at or kept."""
        return self.evaluation_is_due(step) or self.saving_is_due(step) or self.fall_begins(step)

    def evaluate(self, state: LoopState, took: StepResult | None) -> LoopState:
        """Measure the student; the state then knows whether it is the best so far."""
        assert self._measure is not None
        metric = self._run.prospect.metric
        value = getattr(self._measure(state, took), metric)
        if not isinstance(value, float) or not _is_better(metric, value, state.best):
            return state
        return state.model_copy(update={"best": Best(step=state.step, value=value)})

    def save(self, state: LoopState) -> Path:
        """Write a checkpoint of everything that the run must not forget."""
        train_state = self._learner
        full = state.model_copy(
            update={
                "threads": torch.get_num_threads(),
                "scaler": states.scaler_state(train_state.scaler),
                "metrics": self._settled(),
            }
        )
        contents = CheckpointContents(
            run=self._record,
            state=full,
            model=states.model_tensors(train_state.model),
            optimizer=moments(train_state.optimizer),
            random=states.random_tensors(train_state.device),
        )
        return checkpoints.save(self._folder, contents, self._run.settings.saving.keep, self._plan.saved_before_fall)

    def resume(self, path: Path) -> LoopState:
        """Put the learner back to where a checkpoint left it."""
        contents = checkpoints.load(path)
        states.restore_model(self._learner.model, contents.model)
        restore_moments(self._learner.optimizer, contents.optimizer)
        states.restore_scaler(self._learner.scaler, contents.state.scaler)
        states.restore_random(contents.random, self._learner.device)
        threads = torch.get_num_threads()
        if contents.state.threads not in (None, threads):
            self._warn(
                f"the run went on {contents.state.threads} threads and goes on with {threads}: sums may round otherwise"
            )
        return contents.state

    def back_to_last_good(self, snapshot: int) -> LoopState:
        """Put the student back to the checkpoint of a step, or the newest good one, with fresh moments; where it is
        then. What was saved and written of later steps is of a course that is left."""
        path = checkpoints.of_step(self._folder, snapshot, self._record)
        path = path or checkpoints.latest(self._folder, self._record, self._warn)
        if path is None:
            raise KdpipeError(
                f"{self._folder} has no checkpoint to go back to",
                hint="set guard.snapshot_every to fewer steps, and begin again with --overwrite",
            )
        contents = checkpoints.load(path)
        states.restore_model(self._learner.model, contents.model)
        forget(self._learner.optimizer)
        # First: a checkpoint of a later step counts on lines that are about to change.
        checkpoints.drop_later(self._folder, path)
        self._rewind(contents.state.step)
        return contents.state

    def take_best(self, state: LoopState) -> LoopState:
        """Put the student back to the best checkpoint, if that is another step and still there; where it is then."""
        best = state.best
        if best is None or best.step == state.step:
            return state
        there = checkpoints.of_step(self._folder, best.step, self._record)
        if there is None:
            self._warn(f"the student of step {best.step:,} was best, and no checkpoint was written then")
            return state
        contents = checkpoints.load(there)
        states.restore_model(self._learner.model, contents.model)
        return contents.state


def _is_better(metric: BestMetric, value: float, best: Best | None) -> bool:
    if best is None:
        return True
    return value > best.value if metric in RISING else value < best.value
