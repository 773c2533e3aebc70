"""Durable files: written under a temporary name, synced, renamed once, never over something else.

In: bytes and paths. Out: files that are whole or not there, whatever kills the process or cuts the power.
Before it: nothing. After it: `writer.py` and `part_writer.py`, which publish with these functions alone.
"""

import errno
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from kdpipe.cache.layout import WORK
from kdpipe.schemas.errors import CacheWriteError

BUFFER_BYTES = 1 << 18
_TAKEN = {errno.EEXIST, errno.ENOTEMPTY, errno.EACCES if os.name == "nt" else errno.EEXIST}


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A new file that is on the disk when the block ends."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o644)
    with open(descriptor, "wb", buffering=BUFFER_BYTES) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def sync_dir(path: Path) -> None:
    """Make the names in a folder durable; Windows has no such call."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_dir(path: Path) -> None:
    """Make a folder, and the missing ones above it, each durable in its parent."""
    if path.is_dir():
        return
    make_dir(path.parent)
    try:
        os.mkdir(path)
    except FileExistsError:
        if not path.is_dir():
            raise
    sync_dir(path.parent)


def publish_dir(work: Path, final: Path) -> bool:
    """Give a finished folder its name; false when another writer was first, whose folder then stands."""
    for folder, _, _ in os.walk(work, topdown=False):
        sync_dir(Path(folder))
    try:
        os.rename(work, final)
    except OSError as error:
        if error.errno not in _TAKEN or not final.is_dir():
            raise
        remove_dir(work)
        return False
    sync_dir(final.parent)
    sync_dir(work.parent)
    return True


def publish_file(cache: Path, final: Path, data: bytes) -> bool:
    """Write a file under its name at once; false when it is there already."""
    work = cache / WORK / work_name(final.name)
    make_dir(work.parent)
    with new_file(work) as file:
        file.write(data)
    try:
        return _move_if_free(work, final)
    finally:
        work.unlink(missing_ok=True)
        sync_dir(work.parent)


def _move_if_free(work: Path, final: Path) -> bool:
    try:
        if os.name == "nt":
            os.rename(work, final)
        else:
            os.link(work, final)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        # No hard links on this file system: the check and the rename are two steps, and whoever
        # loses compares afterwards.
        if final.exists():
            return False
        os.rename(work, final)
    sync_dir(final.parent)
    return True


def remove_dir(path: Path) -> None:
    """Remove a folder of ours that nobody has been told about."""
    shutil.rmtree(path, ignore_errors=True)


def work_name(what: str) -> str:
    """A name that no other writer uses, and that says whose it is."""
    host = "".join(letter if letter.isalnum() else "-" for letter in socket.gethostname())[:40]
    return f"{what}~{host}~{boot_id()}~{os.getpid()}~{secrets.token_hex(4)}"


def boot_id() -> str:
    """What changes when this machine starts anew, so that an old process number is not taken for a living one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        return "unknown"


def is_abandoned(name: str) -> bool:
    """Whether a work name belongs to a process of this machine that is gone; other machines' are left alone."""
    try:
        _, host, boot, pid, _ = name.split("~")
        process = int(pid)
    except ValueError:
        return False
    _, own_host, own_boot, own_pid, _ = work_name("x").split("~")
    if host != own_host or process == int(own_pid):
        return False
    return boot != own_boot or not _is_alive(process)


def _is_alive(process: int) -> bool:
    if os.name == "nt":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def explained(doing: str, where: Path) -> Iterator[None]:
    """Turn the system's refusals into sentences that say what to do."""
    try:
        yield
    except OSError as error:
        raise CacheWriteError(f"{doing}: {error.strerror or error} ({where})", hint=_advice(error, where)) from error


def _advice(error: OSError, where: Path) -> str:
    safe = "what was committed is safe; then run the same command again"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"free some space on the disk of {where}: {safe}"
    if error.errno == errno.EFBIG:
        return f"raise the limit on file sizes (ulimit -f), or use smaller parts: {safe}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "write to a folder that you may write to"
    return f"see to the disk: {safe}"
