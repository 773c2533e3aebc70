"""Progress of training on stderr."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, final

from kdpipe.cli import console
from kdpipe.cli.progress import Show, Throttle, display, line_of
from kdpipe.cli.quantities import duration, share

if TYPE_CHECKING:
    from kdpipe.pipeline.watch import StepProgress, TrainWatch


@contextmanager
def following() -> Iterator["TrainWatch"]:
    """Progress of train."""
    with display(line_of) as (show, seconds_between):
        yield ShownTrainWatch(show, seconds_between)


@final
class ShownTrainWatch(console.Notes):
    """Shows steps, loss, time left, learning rate and throughput."""

    def __init__(self, show: Show, seconds_between: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._show, self._throttle = show, Throttle(seconds_between, clock)
        self._n_steps = 0

    def begin(self, n_steps: int, n_done: int) -> None:
        self._n_steps = n_steps
        if n_done:
            console.note(f"resuming from step {n_done:,} of {n_steps:,}")
        self._throttle.restart()

    def stepped(self, news: "StepProgress") -> None:
        if not self._throttle.is_open():
            return
        texts = [f"step {news.step:,}/{self._n_steps:,}"]
        if news.loss is not None:
            texts.append(f"{news.loss_name} {news.loss:.4f}")
        if news.seconds_left is not None:  # before what a narrow terminal cuts off
            texts.append(f"{duration(news.seconds_left)} left")
        texts += [
            f"lr {news.rate:.2e}",
            f"{news.positions_per_second:,.0f} positions/s",
            f"cache {share(news.waiting_share)}",
        ]
        if news.skipped:
            texts.append(f"{news.skipped:,} skipped")
        self._show(news.step, self._n_steps, ", ".join(texts))
