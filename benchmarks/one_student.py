"""One student trained from a cache and measured against the whole teacher: the step that recovery and sweep repeat.

In: settings of stage two, the validation split of a cache of kind `state`. Out: exact CE and KL, agreement,
calibration, seconds.
"""

import time
from pathlib import Path
from typing import Any

from kdpipe.cache import Cache
from kdpipe.pipeline.evaluation.measure import Evaluator
from kdpipe.pipeline.training import run_folder
from kdpipe.pipeline.training.desk import open_desk
from kdpipe.pipeline.training.loop import Loop
from kdpipe.pipeline.training.needs import teacher_head
from kdpipe.pipeline.training.prepare import look, prepare
from kdpipe.pipeline.training.stopping import listening
from kdpipe.pipeline.watch import SilentTrainWatch
from kdpipe.schemas.checkpoint import LoopState
from kdpipe.schemas.stage_two import StageTwo


def trained_and_measured(settings: StageTwo, state: Cache) -> dict[str, Any]:
    """A student from fresh weights to what it is worth on the validation split of the states."""
    watch, out = SilentTrainWatch(), Path(settings.out or "")
    with listening() as stop:
        start, cpu = time.perf_counter(), time.process_time()
        prospect = look(settings, watch)
        run_folder.claim(out, prospect.record)
        prepared = prepare(prospect, watch)
        with open_desk(prepared, out, None, watch) as desk:
            loop = Loop(prepared, LoopState(step=0, place=0), desk.around(stop))
            loop.go_on(prospect.plan.n_steps)
    learner = prepared.learner
    measured = Evaluator(state, teacher_head(state), batch_size=settings.run.batch_size).measure(
        learner.student, learner.precision
    )
    assert measured.kl_teacher_estimate == "exact"
    return {
        "parameters": learner.student.n_parameters(),
        "steps": loop.state.step,
        "positions": loop.state.positions,
        "skipped": loop.state.guard.skipped,
        "cross_entropy": measured.cross_entropy,
        "kl_teacher": measured.kl_teacher,
        "top1_agreement": measured.top1_agreement,
        "ece": measured.ece,
        "validated_positions": measured.positions,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
    }
