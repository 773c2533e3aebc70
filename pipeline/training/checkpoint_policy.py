"""When a run evaluates and saves, and how it returns to a checkpoint.

In: a `Run`, its `TrainState`, its folder. Out: checkpoints, evaluations in the log, the train state of a checkpoint.
"""

from collections.abc import Callable
from pathlib import Path
from typing import final

import torch

from kdpipe.pipeline.training import checkpoints, run_folder, state_tensors
from kdpipe.pipeline.training.checkpoints import CheckpointContents
from kdpipe.pipeline.training.optimizers import moments, reset_moments, restore_moments
from kdpipe.pipeline.training.run import Run
from kdpipe.pipeline.training.step import StepResult
from kdpipe.pipeline.training.step_log import StepLog
from kdpipe.pipeline.training.train_state import TrainState
from kdpipe.pipeline.training.validation import Validation
from kdpipe.schemas.checkpoint import Best, LoopState
from kdpipe.schemas.errors import KdpipeError


@final
class CheckpointPolicy:
    """Schedules, writes and restores checkpoints; without `validation` nothing is evaluated."""

    def __init__(
        self,
        run: Run,
        train_state: TrainState,
        folder: Path,
        log: StepLog,
        validation: Validation | None,
        warn: Callable[[str], None],
    ) -> None:
        self._run, self._train_state, self._folder = run, train_state, folder
        self._log, self._validation, self._warn = log, validation, warn
        self._plan, self._record = run.plan, run_folder.stored(folder, run.record)

    def should_evaluate(self, step: int) -> bool:
        """Every `evaluate_every` steps, and at the end."""
        return self._validation is not None and (step % self._plan.evaluate_every == 0 or step == self._plan.n_steps)

    def should_save(self, step: int) -> bool:
        """Every `save_every` steps, at the end, and as often as the guard needs a snapshot."""
        snapshot = self._run.guard.snapshot_every
        often = step % self._plan.save_every == 0 or (snapshot is not None and step % snapshot == 0)
        return often or step == self._plan.n_steps

    def decay_begins(self, step: int) -> bool:
        """Whether the next step is the first of the decay of a `wsd` schedule: a longer run resumes there."""
        return step == self._plan.saved_before_decay

    def should_evaluate_or_save(self, step: int) -> bool:
        """Any of the three."""
        return self.should_evaluate(step) or self.should_save(step) or self.decay_begins(step)

    def evaluate(self, state: LoopState, result: StepResult | None) -> LoopState:
        """Evaluate the student and update the best step."""
        assert self._validation is not None
        value = getattr(self._validation.evaluate(state, result), self._run.metric)
        if not self._run.improves(value, state.best):
            return state
        return state.model_copy(update={"best": Best(step=state.step, value=value)})

    def save(self, state: LoopState) -> Path:
        """Write a checkpoint of the whole state of the run."""
        train_state = self._train_state
        full = state.model_copy(
            update={
                "threads": torch.get_num_threads(),
                "scaler": state_tensors.scaler_state(train_state.scaler),
                "metrics": self._log.sync(),
            }
        )
        contents = CheckpointContents(
            run=self._record,
            state=full,
            model=state_tensors.model_tensors(train_state.model),
            optimizer=moments(train_state.optimizer),
            random=state_tensors.random_tensors(train_state.device),
        )
        return checkpoints.save(self._folder, contents, self._run.settings.saving.keep, self._plan.saved_before_decay)

    def resume(self, path: Path) -> LoopState:
        """Restore the whole state of the run from a checkpoint."""
        contents, train_state = checkpoints.load(path), self._train_state
        state_tensors.restore_model(train_state.model, contents.model)
        restore_moments(train_state.optimizer, contents.optimizer)
        state_tensors.restore_scaler(train_state.scaler, contents.state.scaler)
        state_tensors.restore_random(contents.random, train_state.device)
        before, threads = contents.state.threads, torch.get_num_threads()
        if before not in (None, threads):
            self._warn(f"the run used {before} threads and resumes with {threads}: results may differ in the last bits")
        return contents.state

    def roll_back(self, snapshot: int) -> LoopState:
        """Restore the student of the checkpoint of step `snapshot`, or of the newest usable one, with fresh moments.

        Later checkpoints are removed, and later log lines are marked as undone.
        """
        path = checkpoints.of_step(self._folder, snapshot, self._record)
        path = path or checkpoints.latest(self._folder, self._record, self._warn)
        if path is None:
            raise KdpipeError(
                f"{self._folder} has no checkpoint to roll back to",
                hint="set guard.snapshot_every to fewer steps, and start over with --overwrite",
            )
        contents = checkpoints.load(path)
        state_tensors.restore_model(self._train_state.model, contents.model)
        reset_moments(self._train_state.optimizer)
        # First: a checkpoint of a later step counts on lines that are about to change.
        checkpoints.drop_later(self._folder, path)
        self._log.rewind(contents.state.step)
        return contents.state

    def restore_best(self, state: LoopState) -> LoopState:
        """Restore the student of the best step, if that is another step and has a checkpoint."""
        best = state.best
        if best is None or best.step == state.step:
            return state
        path = checkpoints.of_step(self._folder, best.step, self._record)
        if path is None:
            self._warn(f"step {best.step:,} was best but has no checkpoint; using the last step")
            return state
        contents = checkpoints.load(path)
        state_tensors.restore_model(self._train_state.model, contents.model)
        return contents.state
