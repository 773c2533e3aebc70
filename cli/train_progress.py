"""Progress of a student on stderr: one bar on a terminal, a line every half minute in a log.

In: what the story says to its `TrainWatch`. Out: nothing on stdout.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, final

from kdpipe.cli import console
from kdpipe.cli.progress import SECONDS_BETWEEN_LINES, LineListener, Show, bar, is_followed, line_of
from kdpipe.cli.quantities import duration, share

if TYPE_CHECKING:
    from kdpipe.pipeline.watch import StepProgress, TrainWatch


@contextmanager
def following() -> Iterator["TrainWatch"]:
    """Someone who follows a student, on this terminal or into this log; the terminal is left as it was."""
    if is_followed():
        with bar() as show:
            yield ShownTrainWatch(show, 0.1)
    else:
        yield ShownTrainWatch(line_of, SECONDS_BETWEEN_LINES)


@final
class ShownTrainWatch(LineListener):
    """Words at once, steps at most so often."""

    def __init__(self, show: Show, seconds_between: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._show, self._seconds_between, self._clock = show, seconds_between, clock
        self._shown_at = clock()
        self._n_steps = 0

    def begin(self, n_steps: int, n_done: int) -> None:
        """What is ahead, and what was done before."""
        self._n_steps = n_steps
        if n_done:
            console.note(f"going on from step {n_done:,} of {n_steps:,}")
        self._shown_at = self._clock()

    def stepped(self, news: "StepProgress") -> None:
        """Shown when the last time is long enough ago."""
        now = self._clock()
        if now - self._shown_at < self._seconds_between:
            return
        self._shown_at = now
        told = [f"step {news.step:,}/{self._n_steps:,}"]
        if news.loss is not None:
            told.append(f"{news.loss_name} {news.loss:.4f}")
        if news.seconds_left is not None:  # before what a narrow terminal cuts off
            told.append(f"{duration(news.seconds_left)} left")
        told += [
            f"rate {news.rate:.2e}",
            f"{news.positions_per_second:,.0f} positions/s",
            f"cache {share(news.waiting_share)}",
        ]
        if news.skipped:
            told.append(f"{news.skipped:,} skipped")
        self._show(news.step, self._n_steps, ", ".join(told))
