"""`Session`: everything that is open while a run trains.

In: a `Run`, its `TrainState`, its folder and the checkpoint it resumes from. Out: a `Session`, closed as a whole.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from kdpipe.pipeline.batches.prefetch import StepLoader, loading_threads
from kdpipe.pipeline.models.devices import usable_cpus
from kdpipe.pipeline.training import checkpoints
from kdpipe.pipeline.training.checkpoint_policy import CheckpointPolicy
from kdpipe.pipeline.training.interruptions import StopRequest
from kdpipe.pipeline.training.metrics import FILE, Metrics
from kdpipe.pipeline.training.run import Run
from kdpipe.pipeline.training.samples import ValidationSamples
from kdpipe.pipeline.training.step_log import StepLog
from kdpipe.pipeline.training.trackers import TrackedRun, Trackers
from kdpipe.pipeline.training.train_state import TrainState
from kdpipe.pipeline.training.validation import Validation
from kdpipe.schemas.checkpoint import LoopState
from kdpipe.schemas.progress import Progress
from kdpipe.schemas.settings import by_dotted_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A run with its open files and threads; `validation`: None without a validation split."""

    run: Run
    train_state: TrainState
    folder: Path
    progress: Progress
    stop: StopRequest
    loader: StepLoader
    log: StepLog
    checkpoints: CheckpointPolicy
    validation: Validation | None
    samples: ValidationSamples


@contextmanager
def open_session(
    run: Run,
    train_state: TrainState,
    folder: Path,
    start: Path | None,
    progress: Progress,
    stop: StopRequest,
    *,
    tracked: bool = True,
) -> Iterator[Session]:
    """Open log, trackers and loader; log lines of steps after the checkpoint `start` are removed."""
    settings = run.settings
    with ExitStack() as stack:
        state = LoopState(step=0, place=0) if start is None else checkpoints.load_state(start)
        metrics = Metrics(folder, state.metrics, state.step, state.place)
        stack.callback(metrics.close)
        if metrics.gap is not None:
            progress.warning(str(metrics.gap))
        config = {name: str(value) for name, value in by_dotted_name(settings.model_dump(mode="json")).items()}
        tracked_run = TrackedRun(name=folder.resolve().name, folder=folder, config=config, step=state.step)
        if tracked:
            progress.message(f"{'metrics':<12}{folder / FILE}")
        trackers = Trackers(settings.report_to if tracked else (), tracked_run, progress)
        stack.callback(trackers.finish)
        log = StepLog(run, train_state, metrics, trackers, progress)
        loader = StepLoader(
            run.cache,
            train_state.wants,
            batch_size=run.micro_batch_size,
            ahead=settings.machine.ahead,
            threads=loading_threads(usable_cpus()),
            pin=run.device.type == "cuda",
        )
        stack.enter_context(loader)
        validation = None if run.validation is None else Validation(run, train_state, run.validation, log, progress)
        if validation is None:
            progress.message("no evaluation: the cache has no validation split")
        yield Session(
            run=run,
            train_state=train_state,
            folder=folder,
            progress=progress,
            stop=stop,
            loader=loader,
            log=log,
            checkpoints=CheckpointPolicy(run, train_state, folder, log, validation, progress.warning),
            validation=validation,
            samples=ValidationSamples(run, train_state, folder, state.step, progress),
        )
