"""`train`: train a student from a cache; no teacher is imported here or below.

In: the settings of `kdpipe train`. Out: a run folder with checkpoints, metrics.jsonl, config.yaml and `final`, a
Hugging Face model folder, and a report. A second call resumes from the newest usable checkpoint.
"""

import tempfile
import time
from pathlib import Path

import torch

from kdpipe.cache.durable.lock import locked
from kdpipe.cache.verify.first_use import check_before_use
from kdpipe.pipeline.evaluation.stored import save_settings
from kdpipe.pipeline.training import checkpoints, completed_run, run_folder, schedules
from kdpipe.pipeline.training.finalize import save_final
from kdpipe.pipeline.training.interruptions import StopRequest, explain_out_of_memory, stop_on_signals
from kdpipe.pipeline.training.longer_run import find_longer_run, lengthen
from kdpipe.pipeline.training.loop import Loop
from kdpipe.pipeline.training.run import Run, plan_run
from kdpipe.pipeline.training.run_summary import estimate, report
from kdpipe.pipeline.training.session import Session, open_session
from kdpipe.pipeline.training.thread_choice import choose_threads
from kdpipe.pipeline.training.train_state import TrainState, build_train_state
from kdpipe.schemas.checkpoint import GuardState, LoopState
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.progress import Progress, Task, running
from kdpipe.schemas.run_report import TrainReport
from kdpipe.schemas.train_rules import applicable
from kdpipe.schemas.train_settings import TrainOptions, TrainSettings

DRY_STEPS = 5


def train(settings: TrainSettings, options: TrainOptions, progress: Progress) -> TrainReport:
    """Start a run, resume it, or return the report of a finished one."""
    started = time.perf_counter()
    _check(options)
    if settings.out is None:
        raise ConfigError("no output directory given", hint="give --out DIR")
    folder = Path(settings.out)
    # Before anything in the folder is read: nothing there changes until the run has ended.
    with locked(folder, progress.message):
        if (finished := completed_run.finished_report(folder, settings, options, progress)) is not None:
            return finished
        return _train_in(folder, settings, options, progress, started)


def _train_in(
    folder: Path, settings: TrainSettings, options: TrainOptions, progress: Progress, started: float
) -> TrainReport:
    """Start or resume the run of a locked folder."""
    run = plan_run(settings, progress)
    steered = options.resume_from is not None
    longer = None if options.overwrite or steered else find_longer_run(folder, run, progress.warning)
    if longer is None:
        run_folder.check(folder, run.record, overwrite=options.overwrite, steered=steered)
    check_before_use(run.cache.url, settings.cache.verify, progress)
    with explain_out_of_memory(settings, "while loading the student"):
        train_state = build_train_state(run, progress)
    # Nothing has been written so far, and a signal ends the process at once.
    with stop_on_signals(progress.message) as stop:
        if options.dry_run:
            return _dry_run(run, train_state, progress, stop, started)
        if longer is not None:
            start, steered = lengthen(folder, run.record, longer, progress.message), False
        else:
            start, steered = _claim(folder, run, options, progress)
        threads = _set_threads(run, train_state, start, progress, stop)
        machine = run.settings.machine.model_copy(update={"threads": threads})
        save_settings(folder, applicable(run.settings.model_copy(update={"machine": machine})))
        if start is None or checkpoints.load_state(start).step < run.plan.n_steps:
            completed_run.remove(folder)
        with open_session(run, train_state, folder, start, progress, stop) as session:
            loop = _train_steps(session, start, run.plan.n_steps, steered=steered)
            with explain_out_of_memory(settings, "while saving the student of the last step"):
                student = save_final(session, loop.state)
            if student.report is not None:
                return student.report
            train_report = report(session, loop, student.evaluation, started)
            command = completed_run.command_record(settings, run.student.kind, run.cache)
            if command is not None:
                completed_run.save(folder, command, run.student.kind, student.step, train_report)
            return train_report


def _train_steps(session: Session, start: Path | None, n_steps: int, *, steered: bool = False) -> Loop:
    """Train from scratch or from a checkpoint; a steered run starts with a new guard that keeps only its counts."""
    run, progress = session.run, session.progress
    state = LoopState(step=0, place=0) if start is None else session.checkpoints.resume(start)
    if steered:
        counts = state.guard.model_dump(include={"phase", "norms", "accepted", "undone", "skipped", "overflowed"})
        state = state.model_copy(update={"guard": GuardState(**counts)})
    for line in (*schedules.lines(run.settings.schedule, run.plan), *run.curriculum.lines(run.term_name)):
        progress.message(line)
    if run.micro_batch_size < run.plan.batch_size:
        progress.message(f"micro-batch {schedules.counted(run.micro_batch_size, 'sequence')}")
    note = f"resuming from step {state.step:,} of {run.plan.n_steps:,}" if state.step else None
    loop = Loop(session, state)
    with running(progress, Task(name="train", unit="steps", total=run.plan.n_steps, done=state.step, note=note)):
        if start is None:
            session.checkpoints.save(state)
        loop.train_until(n_steps)
    return loop


def _set_threads(run: Run, train_state: TrainState, start: Path | None, progress: Progress, stop: StopRequest) -> int:
    """Choose, set and report the number of CPU threads."""
    with explain_out_of_memory(run.settings, "while timing threads"):
        resumed = None if start is None else checkpoints.load_state(start)
        choice = choose_threads(run, train_state, resumed, stop)
    torch.set_num_threads(choice.n)
    progress.message(f"threads     {choice.n}: {choice.reason}")
    return choice.n


def _dry_run(run: Run, train_state: TrainState, progress: Progress, stop: StopRequest, started: float) -> TrainReport:
    """A few steps, an evaluation, a checkpoint written and read, and a final student, in a temporary folder."""
    # Next to the run folder: checkpoints may be larger than the system's temporary folder.
    beside = next(parent for parent in Path(run.settings.out or ".").absolute().parents if parent.is_dir())
    with tempfile.TemporaryDirectory(prefix=".kdpipe-dry-", dir=beside) as temporary:
        folder = Path(temporary) / "run"
        run_folder.claim(folder, run.record)
        _set_threads(run, train_state, None, progress, stop)
        with open_session(run, train_state, folder, None, progress, stop, tracked=False) as session:
            loop = _train_steps(session, None, min(DRY_STEPS, run.plan.n_steps))
            whole_run = estimate(session, loop)
            student = save_final(session, loop.state)
            train_report = report(session, loop, student.evaluation, started)
            update = {"run": run.settings.out or "", "dry_run": whole_run, "final": None, "samples": None}
            return train_report.model_copy(update=update)


def _claim(folder: Path, run: Run, options: TrainOptions, progress: Progress) -> tuple[Path | None, bool]:
    """Take the folder; the checkpoint to resume from, and whether --resume-from changes settings of the run."""
    chosen, steered = None, options.resume_from is not None
    if options.resume_from is not None:
        record = run_folder.stored(folder, run.record)
        chosen = checkpoints.choose(folder, options.resume_from, record, progress.message)
    changed = run_folder.claim(folder, run.record, overwrite=options.overwrite, steered=steered)
    for difference in changed:
        progress.message(f"resuming with a changed {difference}")
    return chosen or checkpoints.to_resume(folder, run_folder.stored(folder, run.record), progress.warning), bool(
        changed
    )


def _check(options: TrainOptions) -> None:
    """Refuse options that exclude each other."""
    for other, given, effect in (
        ("--overwrite", options.overwrite, "removes all checkpoints"),
        ("--dry-run", options.dry_run, "starts from scratch in a temporary folder"),
    ):
        if given and options.resume_from is not None:
            raise ConfigError(f"--resume-from resumes from a checkpoint, but {other} {effect}", hint="omit one of them")
