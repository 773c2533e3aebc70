"""The desk: everything a run works with while it is under way, opened together and closed together.

In: a `PreparedRun` run, its folder, the checkpoint it goes on from. Out: a `Session`.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from kdpipe.pipeline.batches.prefetch import StepLoader, loading_threads
from kdpipe.pipeline.models.devices import usable_cpus
from kdpipe.pipeline.training import checkpoints, run_folder
from kdpipe.pipeline.training.checkpoint_policy import CheckpointPolicy, Place
from kdpipe.pipeline.training.loop import LoopContext
from kdpipe.pipeline.training.metrics import Metrics
from kdpipe.pipeline.training.prepare import PreparedRun
from kdpipe.pipeline.training.step_log import StepLog
from kdpipe.pipeline.training.stop_signals import StopRequest
from kdpipe.pipeline.training.trackers import TrackedRun, Trackers
from kdpipe.pipeline.training.validation import Validation
from kdpipe.pipeline.watch import TrainWatch
from kdpipe.schemas.checkpoint import LoopState
from kdpipe.schemas.settings import by_dotted_name
from kdpipe.schemas.train_settings import TrainSettings

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What is at hand; `measure` is None where the cache has nothing to validate on."""

    prepared: PreparedRun
    watch: TrainWatch
    loader: StepLoader
    book: StepLog
    keeper: CheckpointPolicy
    measure: Validation | None

    def around(self, stop: StopRequest) -> LoopContext:
        """What the loop talks to."""
        return LoopContext(loader=self.loader, keeper=self.keeper, book=self.book, watch=self.watch, stop=stop)


@contextmanager
def open_desk(
    prepared: PreparedRun, folder: Path, begin: Path | None, watch: TrainWatch, *, followed: bool = True
) -> Iterator[Session]:
    """Open log, trackers and loader; what the log says of steps behind the checkpoint is cut off.

    A run that is not `followed` tells no tracker.
    """
    prospect = prepared.prospect
    with ExitStack() as stack:
        state = LoopState(step=0, place=0) if begin is None else checkpoints.load_state(begin)
        metrics = Metrics(folder, state.metrics, state.step, state.place)
        stack.callback(metrics.close)
        if metrics.gap is not None:
            watch.warn(str(metrics.gap))
        tracked = TrackedRun(
            name=folder.resolve().name, folder=folder, config=_told(prospect.settings), step=state.step
        )
        trackers = Trackers(prospect.settings.report_to if followed else (), tracked, watch.warn)
        stack.callback(trackers.finish)
        book = StepLog(prepared, watch, _both(metrics.write, trackers.write))
        loader = StepLoader(
            prospect.cache,
            prepared.wants,
            batch_size=prospect.portion,
            ahead=prospect.settings.machine.ahead,
            threads=loading_threads(usable_cpus()),
            pin=prospect.device.type == "cuda",
        )
        stack.enter_context(loader)
        measure = None
        if prospect.validation is not None:
            measure = Validation(prepared, prospect.validation, book, prospect.settings.evaluation.limit)
        else:
            watch.say("the cache has no validation split: nothing is evaluated")
        rewind = _both(metrics.undo, trackers.rewind)
        record = run_folder.stored(folder, prospect.record)
        place = Place(folder=folder, run=record, warn=watch.warn, settled=metrics.settled, rewind=rewind)
        keeper = CheckpointPolicy(prepared, place, measure)
        yield Session(prepared=prepared, watch=watch, loader=loader, book=book, keeper=keeper, measure=measure)


def _both(first: Callable[[T], None], second: Callable[[T], None]) -> Callable[[T], None]:
    def call(word: T) -> None:
        first(word)
        second(word)

    return call


def _told(settings: TrainSettings) -> dict[str, str]:
    """Settings as trackers show them."""
    return {name: str(value) for name, value in by_dotted_name(settings.model_dump(mode="json")).items()}
