"""Progress of a long run on stderr: one bar on a terminal, a line every half minute in a log.

In: what a story says to its `Watch`. Out: nothing on stdout, ever.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, final

from kdpipe.cli import console
from kdpipe.cli.quantities import duration, share, size

if TYPE_CHECKING:
    from kdpipe.pipeline.watch import PartsProgress, Watch

SECONDS_BETWEEN_LINES = 30.0
Show = Callable[[int, int | None, str], None]


def is_followed() -> bool:
    """Whether a person looks at stderr, on a terminal that can draw."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


@contextmanager
def watching() -> Iterator["Watch"]:
    """Someone who follows a run, on this terminal or into this log; the terminal is left as it was."""
    if is_followed():
        with bar() as show:
            yield ShownWatch(show, 0.1)
    else:
        yield ShownWatch(line, SECONDS_BETWEEN_LINES)


class LineListener:
    """Who is told words at once."""

    def say(self, text: str) -> None:
        """A line at once."""
        console.note(text)

    def warn(self, text: str) -> None:
        """A line at once, marked as one to look into."""
        console.note(f"warning: {text}")


@final
class ShownWatch(LineListener):
    """Words at once, progress at most so often: `show` gets positions done, those planned, and what to say of them."""

    def __init__(self, show: Show, seconds_between: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._show, self._seconds_between, self._clock = show, seconds_between, clock
        self._shown_at = clock()
        self._parts, self._parts_done = 0, 0
        self._planned: int | None = None

    def begin(self, n_parts: int, n_done: int, positions_planned: int | None) -> None:
        """What is ahead, and what was done before."""
        self._parts, self._parts_done, self._planned = n_parts, n_done, positions_planned
        if n_done:
            console.note(f"{n_done:,} of {n_parts:,} parts are there already")
        self._shown_at = self._clock()

    def progress(self, news: "PartsProgress") -> None:
        """Shown when the last time is long enough ago."""
        now = self._clock()
        if now - self._shown_at < self._seconds_between:
            return
        self._shown_at = now
        told = [
            f"{news.positions_per_second:,.0f} positions/s",
            f"teacher {share(news.waiting_share)}",
            size(news.bytes_written),
            f"part {self._parts_done:,}/{self._parts:,}",
        ]
        if news.seconds_left is not None:
            told.append(f"{duration(news.seconds_left)} left")
        planned = self._planned
        if planned is None and news.seconds_left is not None:
            planned = news.positions_done + round(news.seconds_left * news.positions_per_second)
        self._show(news.positions_done, planned, ", ".join(told))

    def part_done(self, number: int, positions: int, n_bytes: int, seconds: float) -> None:
        """One more; the next progress tells."""
        self._parts_done += 1


def line(done: int, planned: int | None, told: str) -> None:
    """A line in a log, for what counts positions."""
    reached = f" ({share(done / planned)})" if planned else ""
    console.note(f"{done:,} positions{reached}: {told}")


def line_of(done: int, planned: int | None, text: str) -> None:
    """A line in a log, for what says itself how far it is."""
    console.note(text)


@contextmanager
def bar() -> Iterator[Show]:
    """A bar on a terminal, which is gone afterwards."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (BarColumn(bar_width=20), TextColumn("{task.fields[told]}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as shown:
        task: list[Any] = []

        def show(done: int, planned: int | None, told: str) -> None:
            told = f"{share(done / planned)}, {told}" if planned else told
            if not task:
                task.append(shown.add_task("", told=told, total=planned))
            shown.update(task[0], completed=done, total=planned, told=told)

        yield show
