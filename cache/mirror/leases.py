"""Leases on mirrored parts: a part that any process of this machine reads is not removed to free space.

In: the path of a lock file. Out: locks that the system releases when their process ends. A forked child, such as a data
loader's worker, inherits the descriptors; releases therefore unlock, since closing alone would leave the lock to the
child. Windows has no shared locks, and needs none here: it removes no mapped file.
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
    """A shared lock on a part, until `release`."""

    def __init__(self, path: Path) -> None:
        self._descriptor: int | None = _opened(path)
        self._owner = os.getpid()
        if os.name != "nt":
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def release(self) -> None:
        if self._descriptor is not None:
            _release(self._descriptor, unlock=self._owner == os.getpid())
            self._descriptor = None


@contextmanager
def exclusive(path: Path) -> Iterator[bool]:
    """Whether the part has no lease; if so, new leases wait until the block ends."""
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
        _release(descriptor, unlock=True)


def _release(descriptor: int, *, unlock: bool) -> None:
    """Close a lock file; a process that only inherited it does not unlock it for its parent."""
    if unlock and os.name != "nt":
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _opened(path: Path) -> int:
    with translate_os_errors("locking a mirrored part", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
