"""The shown `Progress`: a bar on a terminal and in a notebook, a line every half minute in a log.

In: the tasks of a story. Out: text on stderr, in a notebook on stdout. At most one bar is shown, that of the innermost
task; what does not fit beside it is left out.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, final

from kdpipe.cli import console
from kdpipe.cli.quantities import duration, share, size
from kdpipe.schemas.choices import TextStyle
from kdpipe.schemas.progress import Progress, SilentProgress, Task, TaskUpdate

SECONDS_BETWEEN_LINES = 30.0
SECONDS_BETWEEN_DRAWS = 0.2
WIDE_COLUMNS, NOTEBOOK_COLUMNS = 100, 100
# Losses are shown as a mean over about so many steps.
SMOOTHED_STEPS = 20
_messages_are_hidden = ContextVar("messages_are_hidden", default=False)
Clock = Callable[[], float]
Line = Callable[[int | None], str]


@contextmanager
def hidden_messages() -> Iterator[None]:
    """Show bars and warnings only, in all commands that run within."""
    token = _messages_are_hidden.set(True)
    try:
        yield
    finally:
        _messages_are_hidden.reset(token)


@contextmanager
def shown_progress(*, quiet: bool = False) -> Iterator[Progress]:
    """Progress as stderr or the notebook can show it; `quiet`: warnings only."""
    if quiet:
        yield QuietProgress()
        return
    canvas: Canvas = Notebook() if _is_notebook() else Terminal() if is_followed() else Log(SECONDS_BETWEEN_LINES)
    try:
        yield ShownProgress(canvas)
    finally:
        canvas.stop()


def is_followed() -> bool:
    """Whether stderr is a terminal that can draw."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _is_notebook() -> bool:
    return type(sys.stdout).__module__.startswith("ipykernel")


@final
class QuietProgress(SilentProgress):
    """Shows warnings only."""

    def warning(self, text: str) -> None:
        console.note(console.warning_text(text))


class Canvas(Protocol):
    """Where a line of progress is shown, from `start` to `stop`; `line` makes it for some columns, None: for a log."""

    def start(self, line: Line) -> None: ...

    def changed(self) -> None: ...

    def stop(self) -> None: ...

    def print(self, text: str) -> None:
        """Print above the line."""
        ...


@final
class ShownProgress:
    """Shows the innermost task on a canvas."""

    def __init__(self, canvas: Canvas, clock: Clock = time.monotonic) -> None:
        self._canvas, self._clock = canvas, clock
        self._tasks: list[TaskView] = []
        # Now: a bar on the terminal replaces stderr by a stream without an encoding.
        self._cells = _cells()
        self._lock = threading.Lock()
        self._hides_messages = _messages_are_hidden.get()

    def message(self, text: str, style: TextStyle = "plain") -> None:
        if not self._hides_messages:
            self._canvas.print(console.styled(text, style, sys.stderr))

    def warning(self, text: str) -> None:
        self._canvas.print(console.warning_text(text))

    def begin(self, task: Task) -> None:
        if task.note is not None:
            self.message(task.note)
        with self._lock:
            self._tasks.append(TaskView(task, self._clock(), self._cells))
        if len(self._tasks) == 1:
            self._canvas.start(self._line)

    def update(self, update: TaskUpdate) -> None:
        with self._lock:
            self._tasks[-1].add(update)
        self._canvas.changed()

    def finish(self, task: Task) -> None:
        with self._lock:
            self._tasks = [view for view in self._tasks if view.task is not task]
        if not self._tasks:
            self._canvas.stop()

    def _line(self, columns: int | None) -> str:
        with self._lock:
            if not self._tasks:
                return ""
            view, now = self._tasks[-1], self._clock()
            return view.log_line(now) if columns is None else view.bar_line(now, columns)


@final
class TaskView:
    """A task as text: its latest update, rate and time left."""

    def __init__(self, task: Task, began: float, cells: tuple[str, str]) -> None:
        self.task, self._began = task, began
        self._full, self._empty = cells
        self._latest = TaskUpdate(done=task.done)
        self._smoothed: dict[str, tuple[int, float]] = {}

    def add(self, update: TaskUpdate) -> None:
        self._latest = update
        for name, value in update.facts.items():
            if name.startswith("loss"):
                n, mean = self._smoothed.get(name, (0, 0.0))
                n = min(n + 1, SMOOTHED_STEPS)
                self._smoothed[name] = n, mean + (value - mean) / n

    def log_line(self, now: float) -> str:
        """`train: 7 of 1,200 steps (1%), 12 min left, 3.1 steps/s, loss 2.4876`."""
        task, done = self.task, self._latest.done
        if not task.unit:
            return f"{task.name}: {duration(now - self._began)}"
        if task.unit == "bytes":
            extent = size(done) if task.total is None else f"{size(min(done, task.total))} of {size(task.total)}"
        else:
            total = "" if task.total is None else f" of {task.total:,}"
            extent = f"{done:,}{total} {task.unit}"
        if (part := self._part(now)) is not None:
            extent += f" ({share(part)})"
        left, rate = self._time_and_rate(now)
        return f"{task.name}: {', '.join([extent, *left, *rate, *self._facts(4)])}"

    def bar_line(self, now: float, columns: int) -> str:
        """`train ██████░░░░ 60% 12 min left 3.1 steps/s loss 2.488`, with what fits: losses rather than rates."""
        name = self.task.name
        if (part := self._part(now)) is None:
            pieces = [name, duration(now - self._began), *([f"{self._latest.done:,}"] if self._latest.done else [])]
        else:
            n_cells = 20 if columns >= WIDE_COLUMNS else 10
            bar = (self._full * round(part * n_cells)).ljust(n_cells, self._empty)
            pieces = [name, bar, f"{share(part):>4}"]
        left, rate = self._time_and_rate(now)
        facts = zip(self._latest.facts, self._facts(3), strict=True)
        ranked = [*((0, text) for text in left), *((2, text) for text in rate)]
        ranked += [(1 if _is_loss(name) else 3, text) for name, text in facts]
        shown, n_columns = set[int](), len(" ".join(pieces))
        for place in sorted(range(len(ranked)), key=lambda place: (ranked[place][0], place)):
            n_columns += 1 + len(ranked[place][1])
            if n_columns >= columns:
                break
            shown.add(place)
        return " ".join([*pieces, *(ranked[place][1] for place in sorted(shown))])[: columns - 1]

    def _part(self, now: float) -> float | None:
        """The share that is done, estimated from the time left if the total is unknown."""
        if self.task.total is not None:
            return min(self._latest.done / self.task.total, 1.0) if self.task.total else 1.0
        left, passed = self._latest.seconds_left, now - self._began
        return passed / (passed + left) if left is not None and passed > 0 else None

    def _time_and_rate(self, now: float) -> tuple[list[str], list[str]]:
        """The time left and the rate, each none or one text."""
        passed, done = now - self._began, self._latest.done - self.task.done
        rate = done / passed if passed > 0 and done > 0 else None
        left = self._latest.seconds_left
        if left is None and rate is not None and self.task.total is not None:
            left = max(0, self.task.total - self._latest.done) / rate
        return [] if left is None else [f"{duration(left)} left"], [] if rate is None else [_rate(rate, self.task.unit)]

    def _facts(self, digits: int) -> list[str]:
        smoothed = {name: mean for name, (_, mean) in self._smoothed.items()}
        return [_fact(name, smoothed.get(name, value), digits) for name, value in self._latest.facts.items()]


def _is_loss(name: str) -> bool:
    return name.startswith("loss") or name in ("val", "best")


def _cells() -> tuple[str, str]:
    """A full and an empty cell of a bar that stderr can encode."""
    return ("\u2588", "\u2591") if "\u2588".encode(sys.stderr.encoding or "ascii", "ignore") else ("#", ".")


def _rate(per_second: float, unit: str) -> str:
    if unit == "bytes":
        return f"{size(per_second)}/s"
    if per_second < 1:
        return f"{1 / per_second:,.1f} s/{unit.removesuffix('s')}"
    return f"{per_second:,.{0 if per_second >= 10 else 1}f} {unit}/s"


def _fact(name: str, value: float | int, digits: int) -> str:
    """A number with its name; integers are counts."""
    if name == "written":
        return f"{size(value)} written"
    if name in ("teacher", "cache"):  # the share of the time spent waiting for it
        return f"{name} {share(value)}"
    if name == "lr":
        return f"lr {value:.2e}"
    if name.endswith("/s"):
        return f"{value:,.0f} {name}"
    return f"{value:,} {name}" if isinstance(value, int) else f"{name} {value:.{digits}f}"


@final
class Log:
    """Prints a line every half minute, also of a task without updates."""

    def __init__(self, seconds_between: float, clock: Clock = time.monotonic) -> None:
        self._seconds_between, self._clock = seconds_between, clock
        self._line: Line = _no_line
        self._printed_at, self._lock, self._stopped = clock(), threading.Lock(), threading.Event()

    def start(self, line: Line) -> None:
        self._line, self._printed_at, self._stopped = line, self._clock(), threading.Event()
        threading.Thread(target=self._watch, args=(self._stopped,), daemon=True).start()

    def changed(self) -> None:
        with self._lock:
            if self._clock() - self._printed_at < self._seconds_between:
                return
            self._printed_at = self._clock()
        if text := self._line(None):
            console.note(text)

    def stop(self) -> None:
        self._stopped.set()

    def _watch(self, stopped: threading.Event) -> None:
        while not stopped.wait(min(self._seconds_between / 10, threading.TIMEOUT_MAX)):
            self.changed()

    def print(self, text: str) -> None:
        console.note(text)


@final
class Notebook:
    """Overwrites one line of a cell's output."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._line: Line = _no_line
        self._drawn_at, self._n_drawn = clock(), 0

    def start(self, line: Line) -> None:
        self._line, self._drawn_at = line, self._clock()

    def changed(self) -> None:
        if self._clock() - self._drawn_at >= SECONDS_BETWEEN_DRAWS:
            self._drawn_at = self._clock()
            text = self._line(NOTEBOOK_COLUMNS)
            console.draw(text.ljust(self._n_drawn))
            self._n_drawn = len(text)

    def stop(self) -> None:
        if self._n_drawn:
            console.draw(" " * self._n_drawn)
            console.draw("")
        self._n_drawn = 0

    def print(self, text: str) -> None:
        self.stop()
        console.answer(text)


@final
class Terminal:
    """Keeps a bar on the last line of the terminal, and removes it at the end."""

    def __init__(self) -> None:
        self._live: Any = None

    def start(self, line: Line) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        terminal = Console(stderr=True)
        self._live = Live(
            get_renderable=lambda: Text(line(terminal.width), no_wrap=True, overflow="crop"),
            console=terminal,
            refresh_per_second=1 / SECONDS_BETWEEN_DRAWS,
            transient=True,
            redirect_stdout=False,
        )
        self._live.start()

    def changed(self) -> None:
        """Nothing: the bar is drawn by a thread, so that it also moves while a long step runs."""

    def stop(self) -> None:
        if self._live is not None:
            self._live.stop()
        self._live = None

    def print(self, text: str) -> None:
        console.note(text)


def _no_line(columns: int | None) -> str:
    return ""
