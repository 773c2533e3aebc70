"""A run from its first to its last step, in a locked folder: new, resumed, lengthened, or a dry run.

In: settings, and inputs that were checked before torch was imported. Out: a run folder and a `TrainReport`.
"""

import tempfile
from pathlib import Path

import torch

from kdpipe.cache.verify.first_use import check_before_use
from kdpipe.pipeline.evaluation.stored import save_settings
from kdpipe.pipeline.training import checkpoints, completed_run, run_folder
from kdpipe.pipeline.training.finalize import save_final
from kdpipe.pipeline.training.interruptions import StopRequest, explain_out_of_memory, stop_on_signals
from kdpipe.pipeline.training.longer_run import find_longer_run, lengthen
from kdpipe.pipeline.training.loop import Loop
from kdpipe.pipeline.training.run import Run, plan_run
from kdpipe.pipeline.training.run_inputs import RunInputs
from kdpipe.pipeline.training.run_setup import run_setup, setup_lines
from kdpipe.pipeline.training.run_summary import dry_step, estimate
from kdpipe.pipeline.training.run_summary import report as report_of
from kdpipe.pipeline.training.session import Session, open_session
from kdpipe.pipeline.training.thread_choice import choose_threads
from kdpipe.pipeline.training.train_state import TrainState, build_train_state
from kdpipe.schemas.checkpoint import GuardState, LoopState
from kdpipe.schemas.progress import Progress, Task, running
from kdpipe.schemas.run_report import DryStep, TrainReport
from kdpipe.schemas.train_rules import applicable
from kdpipe.schemas.train_settings import TrainOptions, TrainSettings

DRY_STEPS = 5


def train_in(
    folder: Path,
    settings: TrainSettings,
    options: TrainOptions,
    inputs: RunInputs,
    progress: Progress,
    started: float,
) -> TrainReport:
    """Start or resume the run of a locked folder."""
    run = plan_run(settings, progress, inputs)
    steered = options.resume_from is not None
    longer = None if options.overwrite or steered else find_longer_run(folder, run, progress.warning)
    if longer is None:
        run_folder.check(folder, run.record, overwrite=options.overwrite, steered=steered)
    check_before_use(run.cache.url, settings.cache.verify, progress)
    with explain_out_of_memory(settings, "while loading the student"):
        train_state = build_train_state(run, progress)
    setup = run_setup(run, train_state)
    for line in setup_lines(run, setup):
        progress.message(line)
    # Nothing has been written so far, and a signal ends the process at once.
    with stop_on_signals(progress.message) as stop:
        if options.dry_run:
            report = _dry_run(run, train_state, progress, stop, started)
            return report.model_copy(update={"setup": setup})
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
            train_report = report_of(session, loop, student.evaluation, started)
            train_report = train_report.model_copy(update={"setup": setup})
            command = completed_run.command_record(settings, run.student.kind, run.cache)
            if command is not None:
                completed_run.save(folder, command, run.student.kind, student.step, train_report)
            return train_report


def _train_steps(
    session: Session,
    start: Path | None,
    n_steps: int,
    *,
    steered: bool = False,
    steps: list[DryStep] | None = None,
) -> Loop:
    """Train from scratch or from a checkpoint; a steered run starts with a new guard that keeps only its counts.

    Each step is added to `steps` if given.
    """
    run, progress = session.run, session.progress
    state = LoopState(step=0, place=0) if start is None else session.checkpoints.resume(start)
    if steered:
        counts = state.guard.model_dump(include={"phase", "norms", "accepted", "undone", "skipped", "overflowed"})
        state = state.model_copy(update={"guard": GuardState(**counts)})
    note = f"resuming from step {state.step:,} of {run.plan.n_steps:,}" if state.step else None
    loop = Loop(session, state)
    with running(progress, Task(name="train", unit="steps", total=run.plan.n_steps, done=state.step, note=note)):
        if start is None:
            session.checkpoints.save(state)
        if steps is None:
            loop.train_until(n_steps)
        else:
            for step in range(1, n_steps + 1):
                loop.train_until(step)
                steps.append(dry_step(session, loop))
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
            steps: list[DryStep] = []
            loop = _train_steps(session, None, min(DRY_STEPS, run.plan.n_steps), steps=steps)
            whole_run = estimate(session, loop, steps)
            student = save_final(session, loop.state)
            train_report = report_of(session, loop, student.evaluation, started)
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
