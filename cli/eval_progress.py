"""Progress of an evaluation on stderr."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, final

from kdpipe.cli import console
from kdpipe.cli.progress import Show, Throttle, display, line_of
from kdpipe.cli.quantities import duration

if TYPE_CHECKING:
    from kdpipe.pipeline.watch import EvalWatch


@contextmanager
def measuring() -> Iterator["EvalWatch"]:
    """Progress of eval."""
    with display(line_of) as (show, seconds_between):
        yield ShownEvalWatch(show, seconds_between)


@final
class ShownEvalWatch(console.Notes):
    """Shows sequences done and the time left, estimated from the first ones."""

    def __init__(self, show: Show, seconds_between: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._show, self._throttle, self._clock = show, Throttle(seconds_between, clock), clock
        self._first: tuple[int, float] | None = None

    def measured(self, n_done: int, n_sequences: int) -> None:
        now = self._clock()
        if self._first is None:
            self._first = (n_done, now)
        if not self._throttle.is_open():
            return
        text = f"measured {n_done:,}/{n_sequences:,} sequences"
        n_first, began = self._first
        if n_done > n_first:
            text += f", {duration((now - began) / (n_done - n_first) * (n_sequences - n_done))} left"
        self._show(n_done, n_sequences, text)
