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
from kdpipe.pipeline.training import run_folder
from kdpipe.pipeline.training.cache_requirements import teacher_head
from kdpipe.pipeline.training.loop import Loop, LoopContext
from kdpipe.pipeline.training.prepare import PreparedRun, look, prepare
from kdpipe.pipeline.training.session import open_desk
from kdpipe.pipeline.training.stop_signals import listening
from kdpipe.pipeline.watch import SilentTrainWatch
from kdpipe.schemas.checkpoint import LoopState
from kdpipe.schemas.train_report import Evaluation
from kdpipe.schemas.train_settings import TrainSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedStudent:
    """A student at its last step."""

    prepared: PreparedRun
    state: LoopState

    def measured(self, cache: Cache, limit: int | None = None) -> Evaluation:
        """Evaluate it on a whole split, or on so many sequences spread over it."""
        batch_size = self.prepared.settings.run.batch_size
        evaluator = Evaluator(cache, teacher_head(cache), batch_size=batch_size, limit=limit)
        return evaluator.measure(self.prepared.train_state.student, self.prepared.train_state.precision)


def trained(
    settings: TrainSettings, around: Callable[[LoopContext], LoopContext] = lambda parts: parts
) -> TrainedStudent:
    """Train a student to the last step; `around` may replace parts of the session, such as the loader."""
    watch, out = SilentTrainWatch(), Path(settings.out or "")
    with listening() as stop:
        prospect = look(settings, watch)
        run_folder.claim(out, prospect.record)
        prepared = prepare(prospect, watch)
        with open_desk(prepared, out, None, watch) as desk:
            loop = Loop(prepared, LoopState(step=0, place=0), around(desk.around(stop)))
            loop.go_on(prospect.plan.n_steps)
    return TrainedStudent(prepared=prepared, state=loop.state)


def trained_and_measured(settings: TrainSettings, state: Cache) -> dict[str, Any]:
    """Train a student and evaluate it on the validation split of the states."""
    start, cpu = time.perf_counter(), time.process_time()
    student = trained(settings)
    measured = student.measured(state)
    assert measured.kl_teacher_estimate == "exact"
    return {
        "parameters": student.prepared.train_state.student.n_parameters(),
        "optimizer_reason": student.prepared.prospect.optimizer_reason,
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
