"""Progress of an evaluation on stderr: one bar on a terminal, a line every half minute in a log.

In: what the story says to its `EvalWatch`. Out: nothing on stdout.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, final

from kdpipe.cli.progress import SECONDS_BETWEEN_LINES, LineListener, Show, bar, is_followed, line_of
from kdpipe.cli.quantities import duration

if TYPE_CHECKING:
    from kdpipe.pipeline.watch import EvalWatch


@contextmanager
def measuring() -> Iterator["EvalWatch"]:
    """Someone who follows an evaluation, on this terminal or into this log; the terminal is left as it was."""
    if is_followed():
        with bar() as show:
            yield ShownEvalWatch(show, 0.1)
    else:
        yield ShownEvalWatch(line_of, SECONDS_BETWEEN_LINES)


@final
class ShownEvalWatch(LineListener):
    """Words at once, sequences at most so often; the time left is by what the first ones took."""

    def __init__(self, show: Show, seconds_between: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._show, self._seconds_between, self._clock = show, seconds_between, clock
        self._shown_at = clock()
        self._first: tuple[int, float] | None = None

    def measured(self, n_done: int, n_sequences: int) -> None:
        """Shown when the last time is long enough ago."""
        now = self._clock()
        if self._first is None:
            self._first = (n_done, now)
        if now - self._shown_at < self._seconds_between:
            return
        self._shown_at = now
        text = f"measured {n_done:,}/{n_sequences:,} sequences"
        n_first, began = self._first
        if n_done > n_first:
            text += f", {duration((now - began) / (n_done - n_first) * (n_sequences - n_done))} left"
        self._show(n_done, n_sequences, text)
