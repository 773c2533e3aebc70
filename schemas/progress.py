"""`Progress`: what long work reports while it runs.

Tasks may follow each other and may be nested; an update belongs to the innermost open task. Calls are cheap, may come
after every batch and, for copies, from any thread.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from kdpipe.schemas.choices import TextStyle

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Work of `total` units, None if unknown, of which an earlier run has `done` some; `note` is shown once."""

    name: str
    unit: str = ""
    total: int | None = None
    done: int = 0
    note: str | None = None

    @classmethod
    def of_parts(cls, name: str, total: int, done: int = 0) -> "Task":
        note = f"{done:,} of {total:,} parts are already there" if done else None
        return cls(name=name, unit="parts", total=total, done=done, note=note)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskUpdate:
    """Units done, the time left if it is known better than from their rate, and numbers, the most telling first."""

    done: int
    seconds_left: float | None = None
    facts: Mapping[str, float | int] = field(default_factory=dict)


class Progress(Protocol):
    """Receives messages, warnings, and the progress of tasks."""

    def message(self, text: str, style: TextStyle = "plain") -> None: ...

    def warning(self, text: str) -> None: ...

    def begin(self, task: Task) -> None: ...

    def update(self, update: TaskUpdate) -> None: ...

    def finish(self, task: Task) -> None: ...


class SilentProgress:
    """Ignores everything; a base for progress that needs some of the calls."""

    def message(self, text: str, style: TextStyle = "plain") -> None:
        pass

    def warning(self, text: str) -> None:
        pass

    def begin(self, task: Task) -> None:
        pass

    def update(self, update: TaskUpdate) -> None:
        pass

    def finish(self, task: Task) -> None:
        pass


@contextmanager
def running(progress: Progress, task: Task) -> Iterator[None]:
    """Begin a task, and finish it at the end of the block."""
    progress.begin(task)
    try:
        yield
    finally:
        progress.finish(task)


@contextmanager
def counting(progress: Progress, task: Task) -> Iterator[Callable[[], None]]:
    """Run a task in the block, which calls the function for each unit done, from any thread."""
    numbers = itertools.count(task.done + 1)
    with running(progress, task):
        yield lambda: progress.update(TaskUpdate(done=next(numbers)))


def tracked(items: Iterable[Item], progress: Progress, task: Task) -> Iterator[Item]:
    """The items, each a unit of a task that is done when the next one is taken."""
    with counting(progress, task) as count:
        for item in items:
            yield item
            count()
