"""Child processes that are forked with all imports done, and the small file systems they may have to themselves.

In: a function. Out: how the child ended and its output.
"""

import ctypes
import errno
import os
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from kdpipe.schemas.errors import KdpipeError

_NEW_NAMESPACES = 0x00020000 | 0x10000000  # CLONE_NEWNS | CLONE_NEWUSER
_READ_ONLY, _REMOUNT, _RECURSIVE, _PRIVATE = 1, 32, 1 << 14, 1 << 18
NO_MOUNT = 77


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended: its exit code, or the signal that ended it as a negative number, and its last words."""

    code: int
    output: str


class Child:
    """A forked child that runs a function and leaves; an error's text is among its last words."""

    def __init__(self, work: Callable[[], str | None]) -> None:
        self._read, write = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if not self.pid:
            os.close(self._read)
            os._exit(_run(work, write))
        os.close(write)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self, timeout_seconds: float = 900) -> Ended:
        """Wait for its end; a child that does not come to it is killed, and the test fails."""
        messages, deadline = b"", time.monotonic() + timeout_seconds
        while True:
            if not select.select([self._read], [], [], max(0, deadline - time.monotonic()))[0]:
                self.kill()
                os.waitpid(self.pid, 0)
                os.close(self._read)
                pytest.fail(f"a child did not end within {timeout_seconds} seconds")
            piece = os.read(self._read, 1 << 16)
            if not piece:
                break
            messages += piece
        os.close(self._read)
        return Ended(os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), messages.decode())


def _run(work: Callable[[], str | None], write: int) -> int:
    # Threads of OpenMP are not forked: a child that counts on those of its parent would wait for them forever.
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    try:
        text, code = work() or "", 0
    except KeyboardInterrupt:
        text, code = "interrupted", 75
    except KdpipeError as error:
        text, code = f"{error.message}\n{error.hint}", error.exit_code
    except BaseException:
        text, code = traceback.format_exc(), 99
    os.write(write, text.encode()[: 1 << 15])
    return code


def in_child(work: Callable[[], str | None], timeout_seconds: float = 900) -> Ended:
    """Run a function in a child to its end."""
    return Child(work).wait(timeout_seconds)


def mounted(work: Callable[[], str | None]) -> Ended:
    """Run a function in a child that may mount; skip the test where the system does not let it."""

    def inner() -> str | None:
        try:
            _own_mounts()
        except OSError as error:
            os._exit(NO_MOUNT if error.errno in (errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EINVAL) else 98)
        return work()

    ended = in_child(inner)
    if ended.code == NO_MOUNT:
        pytest.skip("this system lets no test have mounts of its own")
    return ended


def _own_mounts() -> None:
    user, group = os.getuid(), os.getgid()
    _call("unshare", _NEW_NAMESPACES)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _call("mount", None, b"/", None, _RECURSIVE | _PRIVATE, None)


def mount_memory(path: Path, n_bytes: int) -> None:
    """A file system in memory of this size; only in `mounted`."""
    path.mkdir(exist_ok=True)
    _call("mount", b"none", os.fsencode(path), b"tmpfs", 0, f"size={n_bytes}".encode())


def remount(path: Path, n_bytes: int, *, read_only: bool = False) -> None:
    """The same with another size, or read-only."""
    flags = _REMOUNT | (_READ_ONLY if read_only else 0)
    _call("mount", b"none", os.fsencode(path), b"tmpfs", flags, f"size={n_bytes}".encode())


def _call(name: str, *arguments: object) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
