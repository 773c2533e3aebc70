"""Stage two: a student learns from a cache alone.

In: the settings of `kdpipe train`. Out: a run folder with checkpoints, metrics.jsonl, config.yaml and `final`, a model
that everything loads, and a report. Before it: `cli/train.py`. After it: `evaluate.py`, `compare.py`, `export.py`.
Run again, it goes on from the newest good checkpoint; no teacher is imported here, or by anything below.
"""

import tempfile
import time
from pathlib import Path

from kdpipe.pipeline.config_file import as_yaml
from kdpipe.pipeline.evaluation.stored import CONFIG
from kdpipe.pipeline.training import checkpoints, run_folder, schedules
from kdpipe.pipeline.training.desk import Desk, open_desk
from kdpipe.pipeline.training.finish import finish
from kdpipe.pipeline.training.loop import Loop
from kdpipe.pipeline.training.prepare import Prospect, look, prepare
from kdpipe.pipeline.training.reporting import estimate, report
from kdpipe.pipeline.training.stopping import Stop, listening
from kdpipe.pipeline.watch import TrainWatch
from kdpipe.schemas.checkpoint import LoopState
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.run_report import TrainReport
from kdpipe.schemas.stage_two import StageTwo, TrainOptions

DRY_STEPS = 5


def train(settings: StageTwo, options: TrainOptions, watch: TrainWatch) -> TrainReport:
    """Do what is left to do of a run."""
    started = time.perf_counter()
    with listening() as stop:
        prospect = look(settings, watch)
        if options.dry_run:
            return _dry_run(prospect, watch, stop, started)
        if settings.out is None:
            raise ConfigError("nothing says where the run goes", hint="give --out DIR")
        folder = Path(settings.out)
        run_folder.claim(folder, prospect.record, overwrite=options.overwrite)
        (folder / CONFIG).write_text(as_yaml(prospect.settings.model_dump(mode="json")), encoding="utf-8")
        begin = _checkpoint(folder, options, watch)
        with open_desk(prepare(prospect, watch), folder, begin, watch) as desk:
            loop = _learn(desk, begin, prospect.plan.n_steps, stop)
            found = finish(desk, loop.state, folder)
            return report(desk, loop, found, folder, started)


def _learn(desk: Desk, begin: Path | None, until: int, stop: Stop) -> Loop:
    """Begin, or go on from a checkpoint, until so many steps are done."""
    state = LoopState(step=0, place=0) if begin is None else desk.keeper.resume(begin)
    for line in schedules.lines(desk.prepared.settings.schedule, desk.prepared.plan):
        desk.watch.say(line)
    desk.watch.begin(desk.prepared.plan.n_steps, state.step)
    loop = Loop(desk.prepared, state, desk.around(stop))
    if begin is None:
        desk.keeper.save(state)
    loop.go_on(until)
    return loop


def _dry_run(prospect: Prospect, watch: TrainWatch, stop: Stop, started: float) -> TrainReport:
    """A few steps of everything, in a folder that is thrown away: learn, evaluate, save, go back to it, finish."""
    with tempfile.TemporaryDirectory(prefix="kdpipe-dry-") as place:
        folder = Path(place) / "run"
        run_folder.claim(folder, prospect.record)
        with open_desk(prepare(prospect, watch), folder, None, watch) as desk:
            loop = _learn(desk, None, min(DRY_STEPS, prospect.plan.n_steps), stop)
            costs = estimate(desk, loop, folder)
            found = finish(desk, loop.state, folder)
            answer = report(desk, loop, found, folder, started)
            return answer.model_copy(update={"run": prospect.settings.out or "", "dry_run": costs, "final": None})


def _checkpoint(folder: Path, options: TrainOptions, watch: TrainWatch) -> Path | None:
    """Where to go on: the checkpoint that was asked for, or the newest good one."""
    if options.resume_from is not None:
        return checkpoints.asked_for(folder, options.resume_from)
    return checkpoints.latest(folder, watch.warn)
