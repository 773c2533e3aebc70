"""Stage two: a student learns from a cache alone.

In: the settings of `kdpipe train`. Out: a run folder with checkpoints, metrics.jsonl, config.yaml and `final`, a model
that everything loads, and a report. Run again, it goes on from the newest good checkpoint; no teacher is imported here,
or by anything below.
"""

import tempfile
import time
from pathlib import Path

import torch

from kdpipe.cache.durable.lock import locked
from kdpipe.cache.verify.first_use import check_before_use
from kdpipe.pipeline.evaluation.stored import save_settings
from kdpipe.pipeline.training import checkpoints, run_folder, schedules
from kdpipe.pipeline.training import completed_run as finished_run
from kdpipe.pipeline.training.finalize import finish
from kdpipe.pipeline.training.longer_run import begin_longer_run, find_longer_run
from kdpipe.pipeline.training.loop import Loop
from kdpipe.pipeline.training.out_of_memory import explained
from kdpipe.pipeline.training.prepare import PreparedRun, look, prepare
from kdpipe.pipeline.training.run_summary import estimate, report
from kdpipe.pipeline.training.session import Session, open_desk
from kdpipe.pipeline.training.stop_signals import StopRequest, listening
from kdpipe.pipeline.training.thread_choice import choose_threads
from kdpipe.pipeline.watch import TrainWatch
from kdpipe.schemas.checkpoint import GuardState, LoopState, RunRecord
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.run_report import TrainReport
from kdpipe.schemas.train_rules import meaningful
from kdpipe.schemas.train_settings import TrainOptions, TrainSettings

DRY_STEPS = 5


def train(settings: TrainSettings, options: TrainOptions, watch: TrainWatch) -> TrainReport:
    """Do what is left to do of a run."""
    started = time.perf_counter()
    _check(options)
    if settings.out is None:
        raise ConfigError("nothing says where the run goes", hint="give --out DIR")
    folder = Path(settings.out)
    # Before anything in the folder is looked at: what is there stays as it is until the run has ended.
    with locked(folder, watch.say):
        if (report_before := finished_run.report_of(folder, settings, options, watch)) is not None:
            return report_before
        return _train_in(folder, settings, options, watch, started)


def _train_in(
    folder: Path, settings: TrainSettings, options: TrainOptions, watch: TrainWatch, started: float
) -> TrainReport:
    """Begin or resume the run of a folder that is locked."""
    prospect = look(settings, watch)
    record = prospect.record
    steered = options.resume_from is not None
    longer = None if options.overwrite or steered else find_longer_run(folder, prospect, record, watch.warn)
    if longer is None:
        run_folder.check(folder, record, overwrite=options.overwrite, steered=steered)
    check_before_use(prospect.cache.url, settings.cache.verify, watch)
    with explained(settings, "while the student was loaded"):
        prepared = prepare(prospect, watch)
    # Until here nothing has been made, and a signal ends it at once.
    with listening(watch.say) as stop:
        if options.dry_run:
            return _dry_run(prepared, watch, stop, started)
        if longer is not None:
            begin, steered = begin_longer_run(folder, record, longer, watch.say), False
        else:
            begin, steered = _begin(folder, record, options, watch)
        machine = prospect.settings.machine.model_copy(update={"threads": _set_threads(prepared, begin, watch, stop)})
        save_settings(folder, meaningful(prospect.settings.model_copy(update={"machine": machine})))
        if begin is None or checkpoints.load_state(begin).step < prospect.plan.n_steps:
            finished_run.remove(folder)
        with open_desk(prepared, folder, begin, watch) as desk:
            loop = _learn(desk, begin, prospect.plan.n_steps, stop, steered=steered)
            with explained(settings, "at the end, with the student of the last step saved"):
                student = finish(desk, loop.state, folder)
            if student.report is not None:
                return student.report
            answer = report(desk, loop, student.evaluation, folder, started)
            source = prospect.found.kind
            if (asked := finished_run.as_asked(settings, source, prospect.cache)) is not None:
                finished_run.save(folder, asked, source, student.step, answer)
            return answer


def _learn(desk: Session, begin: Path | None, until: int, stop: StopRequest, *, steered: bool = False) -> Loop:
    """Begin, or go on from a checkpoint, until so many steps are done; the guard of a steered run begins anew."""
    state = LoopState(step=0, place=0) if begin is None else desk.keeper.resume(begin)
    if steered:
        counts = state.guard.model_dump(include={"phase", "norms", "accepted", "undone", "skipped", "overflowed"})
        state = state.model_copy(update={"guard": GuardState(**counts)})
    prepared = desk.prepared
    course = schedules.lines(prepared.settings.schedule, prepared.plan)
    for line in (*course, *prepared.curriculum.lines(prepared.name_of)):
        desk.watch.say(line)
    if prepared.prospect.portion < prepared.plan.batch_size:
        at_once = schedules.counted(prepared.prospect.portion, "sequence")
        desk.watch.say(f"portions    a batch is read in pieces of {at_once}")
    desk.watch.begin(prepared.plan.n_steps, state.step)
    loop = Loop(desk.prepared, state, desk.around(stop))
    if begin is None:
        desk.keeper.save(state)
    loop.go_on(until)
    return loop


def _set_threads(prepared: PreparedRun, begin: Path | None, watch: TrainWatch, stop: StopRequest) -> int:
    """Compute with the threads that are chosen for this run, which are said."""
    with explained(prepared.settings, "while threads were timed"):
        choice = choose_threads(prepared, None if begin is None else checkpoints.load_state(begin), stop)
    torch.set_num_threads(choice.n)
    watch.say(f"threads     {choice.n}: {choice.reason}")
    return choice.n


def _dry_run(prepared: PreparedRun, watch: TrainWatch, stop: StopRequest, started: float) -> TrainReport:
    """A few steps of everything, in a folder that is thrown away: learn, evaluate, save, go back to it, finish."""
    prospect = prepared.prospect
    # Beside the run to be: checkpoints may be larger than what a folder for scratch holds.
    beside = next(parent for parent in Path(prospect.settings.out or ".").absolute().parents if parent.is_dir())
    with tempfile.TemporaryDirectory(prefix=".kdpipe-dry-", dir=beside) as place:
        folder = Path(place) / "run"
        run_folder.claim(folder, prospect.record)
        _set_threads(prepared, None, watch, stop)
        with open_desk(prepared, folder, None, watch, followed=False) as desk:
            loop = _learn(desk, None, min(DRY_STEPS, prospect.plan.n_steps), stop)
            costs = estimate(desk, loop, folder)
            student = finish(desk, loop.state, folder)
            answer = report(desk, loop, student.evaluation, folder, started)
            return answer.model_copy(update={"run": prospect.settings.out or "", "dry_run": costs, "final": None})


def _begin(folder: Path, record: RunRecord, options: TrainOptions, watch: TrainWatch) -> tuple[Path | None, bool]:
    """Take the folder, and find where to go on: the checkpoint that was asked for, or the newest good one.

    Also whether the run is steered: from a checkpoint that was asked for it may go on with other rates.
    """
    chosen, steered = None, options.resume_from is not None
    if options.resume_from is not None:
        found = run_folder.stored(folder, record)
        chosen = checkpoints.asked_for(folder, options.resume_from, found, watch.say)
    changed = run_folder.claim(folder, record, overwrite=options.overwrite, steered=steered)
    for told in changed:
        watch.say(f"goes on with another {told}")
    return chosen or checkpoints.to_resume(folder, run_folder.stored(folder, record), watch.warn), bool(changed)


def _check(options: TrainOptions) -> None:
    """Refuse what one call cannot do at once."""
    for other, asked, why in (
        ("--overwrite", options.overwrite, "clears the checkpoints"),
        ("--dry-run", options.dry_run, "begins anew in a folder of its own"),
    ):
        if asked and options.resume_from is not None:
            raise ConfigError(f"--resume-from goes on from a checkpoint, and {other} {why}", hint="leave one out")
