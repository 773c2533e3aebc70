"""Train one student from a cache and evaluate it against the full teacher distribution.

In: settings of stage two, the validation split of a cache of kind `state`. Out: exact CE and KL, agreement,
calibration, seconds.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdpipe.cache import Cache
from kdpipe.pipeline.evaluation.measure import Evaluator
from kdpipe.pipeline.losses.dense_chunk import teacher_head
from kdpipe.pipeline.training import run_folder
from kdpipe.pipeline.training.interruptions import stop_on_signals
from kdpipe.pipeline.training.loop import Loop
from kdpipe.pipeline.training.run import Run, plan_run
from kdpipe.pipeline.training.session import Session, open_session
from kdpipe.pipeline.training.train_state import TrainState, build_train_state
from kdpipe.schemas.checkpoint import LoopState
from kdpipe.schemas.progress import SilentProgress
from kdpipe.schemas.train_report import Evaluation
from kdpipe.schemas.train_settings import TrainSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedStudent:
    """A student at its last step."""

    run: Run
    train_state: TrainState
    state: LoopState

    def measured(self, cache: Cache, limit: int | None = None) -> Evaluation:
        """Evaluate it on a split, whole or in so many sequences spread over it."""
        batch_size = self.run.settings.run.batch_size
        evaluator = Evaluator(cache, teacher_head(cache), batch_size=batch_size, limit=limit)
        return evaluator.measure(self.train_state.student, self.train_state.precision)


def trained(settings: TrainSettings, changed: Callable[[Session], Session] = lambda session: session) -> TrainedStudent:
    """Train a student to the last step; `changed` may replace parts of the session, such as its loader."""
    progress, out = SilentProgress(), Path(settings.out or "")
    with stop_on_signals() as stop:
        run = plan_run(settings, progress)
        run_folder.claim(out, run.record)
        train_state = build_train_state(run, progress)
        with open_session(run, train_state, out, None, progress, stop) as session:
            loop = Loop(changed(session), LoopState(step=0, place=0))
            loop.train_until(run.plan.n_steps)
    return TrainedStudent(run=run, train_state=train_state, state=loop.state)


def trained_and_measured(settings: TrainSettings, state: Cache) -> dict[str, Any]:
    """Train a student and evaluate it on the validation split of the states."""
    start, cpu = time.perf_counter(), time.process_time()
    student = trained(settings)
    measured = student.measured(state)
    assert measured.kl_teacher_estimate == "exact"
    return {
        "parameters": student.train_state.student.n_parameters(),
        "optimizer_reason": student.run.optimizer_reason,
        "steps": student.state.step,
        "positions": student.state.positions,
        "skipped": student.state.guard.skipped,
        "cross_entropy": measured.cross_entropy,
        "kl_teacher": measured.kl_teacher,
        "top1_agreement": measured.top1_agreement,
        "ece": measured.ece,
        "validated_positions": measured.positions,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
    }
