"""Progress on stderr: one bar on a terminal, a line every half minute in a log."""

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
    """Whether stderr is a terminal that can draw."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


@contextmanager
def watching() -> Iterator["Watch"]:
    """Progress of cache-teacher and plan."""
    with display(line) as (show, seconds_between):
        yield ShownWatch(show, seconds_between)


@contextmanager
def display(show_line: Show) -> Iterator[tuple[Show, float]]:
    """A bar or lines, whichever stderr can show, with the seconds between updates."""
    if is_followed():
        with bar() as show:
            yield show, 0.1
    else:
        yield show_line, SECONDS_BETWEEN_LINES


class Throttle:
    """Limits updates to one per interval."""

    def __init__(self, seconds_between: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds_between, self.clock = seconds_between, clock
        self._shown_at = clock()

    def restart(self) -> None:
        """Begin an interval now."""
        self._shown_at = self.clock()

    def is_open(self) -> bool:
        """Whether the interval has passed; if so, the next one begins."""
        now = self.clock()
        if now - self._shown_at < self._seconds_between:
            return False
        self._shown_at = now
        return True


@final
class ShownWatch(console.Notes):
    """Shows positions done and planned, throughput and time left."""

    def __init__(self, show: Show, seconds_between: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._show, self._throttle = show, Throttle(seconds_between, clock)
        self._parts, self._parts_done = 0, 0
        self._planned: int | None = None

    def begin(self, n_parts: int, n_done: int, positions_planned: int | None) -> None:
        self._parts, self._parts_done, self._planned = n_parts, n_done, positions_planned
        if n_done:
            console.note(f"{n_done:,} of {n_parts:,} parts are already there")
        self._throttle.restart()

    def progress(self, news: "PartsProgress") -> None:
        if not self._throttle.is_open():
            return
        texts = [
            f"{news.positions_per_second:,.0f} positions/s",
            f"teacher {share(news.waiting_share)}",
            size(news.bytes_written),
            f"part {self._parts_done:,}/{self._parts:,}",
        ]
        if news.seconds_left is not None:
            texts.append(f"{duration(news.seconds_left)} left")
        planned = self._planned
        if planned is None and news.seconds_left is not None:
            planned = news.positions_done + round(news.seconds_left * news.positions_per_second)
        self._show(news.positions_done, planned, ", ".join(texts))

    def part_done(self, number: int, positions: int, n_bytes: int, seconds: float) -> None:
        self._parts_done += 1


def line(done: int, planned: int | None, text: str) -> None:
    """A log line that begins with the positions done."""
    reached = f" ({share(done / planned)})" if planned else ""
    console.note(f"{done:,} positions{reached}: {text}")


def line_of(done: int, planned: int | None, text: str) -> None:
    """A log line whose text has the counts."""
    console.note(text)


@contextmanager
def bar() -> Iterator[Show]:
    """A bar on the terminal, removed at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (BarColumn(bar_width=20), TextColumn("{task.fields[text]}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as shown:
        task: list[Any] = []

        def show(done: int, planned: int | None, text: str) -> None:
            text = f"{share(done / planned)}, {text}" if planned else text
            if not task:
                task.append(shown.add_task("", text=text, total=planned))
            shown.update(task[0], completed=done, total=planned, text=text)

        yield show
