"""Faults in the calls with which a writer changes the disk: counted, then killed at, refused or interrupted.

In: the number of a call and what happens there. Out: a patched `os` for the length of a block.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from unittest import mock

from kdpipe.cache.durable import files

CALLS = ("open", "fsync", "rename", "link", "mkdir", "unlink", "rmdir")
# A fault: given the name of the call, what it would do and its path, do the call, or something worse.
Fault = Callable[[str, Callable[..., Any], str], Any]


@dataclass(slots=True)
class Calls:
    """The calls so far."""

    n: int = 0


@contextmanager
def fault_at(number: int, fault: Fault, more: tuple[str, ...] = ()) -> Iterator[Calls]:
    """Let one call go wrong, the others through; writes to files of a cache count as calls, and `more` of `os`."""
    calls = Calls()

    def meet(name: str, call: Callable[..., Any], path: str) -> Any:
        calls.n += 1
        return fault(name, call, path) if calls.n == number else call()

    with contextlib.ExitStack() as stack:
        for name in (*CALLS, *more):
            stack.enter_context(mock.patch.object(os, name, _counted(name, getattr(os, name), meet)))
        stack.enter_context(mock.patch.object(files._File, "write", _counted_write(files._File.write, meet)))
        yield calls


def _counted(name: str, real: Callable[..., Any], meet: Fault) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        return meet(name, lambda: real(*arguments, **options), path_of(name, arguments, options))

    return call


def path_of(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> str:
    """The path that a call is about: the new name, the file behind a descriptor, a name in an open folder."""
    place = arguments[1 if name in ("rename", "link") else 0]
    if isinstance(place, int):
        return os.readlink(f"/proc/self/fd/{place}")
    folder = options.get("dir_fd")
    return os.path.join("" if folder is None else os.readlink(f"/proc/self/fd/{folder}"), os.fspath(place))


def _counted_write(real: Callable[..., int], meet: Fault) -> Callable[..., int]:
    def write(self: Any, data: Any) -> int:
        if self.is_abandoned:
            return real(self, data)

        def some(share: float = 1) -> int:
            return real(self, memoryview(data)[: int(len(data) * share)])

        done: int = meet("write", some, os.readlink(f"/proc/self/fd/{self.fileno()}"))
        return done

    return write


def count_calls(work: Callable[[], Any], more: tuple[str, ...] = ()) -> int:
    """How many calls some work makes when nothing goes wrong."""
    with fault_at(0, lambda _name, call, _path: call(), more) as calls:
        work()
    return calls.n


def killed(where: Callable[[str], None], when: Literal["before", "after", "half"]) -> Fault:
    """Die by SIGKILL before or after the call, or half-way through a write; `where` receives its path first."""

    def fault(name: str, call: Callable[..., Any], path: str) -> Any:
        where(path)
        if when == "half" and name == "write":
            call(0.5)
        elif when == "after":
            call()
        os.kill(os.getpid(), signal.SIGKILL)

    return fault


def refused(number: int) -> Fault:
    """The system refuses the call with an errno."""

    def fault(_name: str, _call: Callable[..., Any], _path: str) -> Any:
        raise OSError(number, os.strerror(number))

    return fault


def interrupted(_name: str, call: Callable[..., Any], _path: str) -> Any:
    """Ctrl-C arrives during the call; only in a child."""
    result = call()
    # A process that was started in the background ignores the signal, and its children with it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGINT)
    return result
