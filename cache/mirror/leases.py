"""Leases: which parts of a folder somebody on this machine is reading, so that nobody makes room by removing them.

In: a folder, part numbers. Out: locks that the system drops with the process that held them. Windows has no shared
locks, and needs none here: it removes no mapped file.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import final

from kdpipe.cache.durable.files import translate_os_errors

if os.name != "nt":
    import fcntl


@final
class PartLease:
    """A part that is being read, until `release`; many may hold one at once."""

    def __init__(self, path: Path) -> None:
        self._descriptor: int | None = _opened(path)
        if os.name != "nt":
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def release(self) -> None:
        """Let the part go."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Whether nobody holds a part; then nobody can begin to while the block runs."""
    descriptor = _opened(path)
    try:
        if os.name == "nt":
            yield True
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _opened(path: Path) -> int:
    with translate_os_errors("keeping a part near", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
