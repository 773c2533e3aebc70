"""Durable files: written under a work name, synced, renamed once, never over something else.

In: bytes and paths. Out: files that are whole or not there, whatever kills the process or cuts the power.
`work_names.py` says whose a work name is.
"""

import errno
import io
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from kdpipe.cache.durable.work_names import is_abandoned, work_name
from kdpipe.cache.layout import WORK
from kdpipe.schemas.errors import WriteError

BUFFER_BYTES = 1 << 18
_TAKEN = {errno.EEXIST, errno.ENOTEMPTY, errno.EACCES if os.name == "nt" else errno.EEXIST}
_NO_HARD_LINKS = {errno.EPERM, errno.EXDEV, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
# What Linux answers where a file system has no fsync for folders, or where nothing can be unsynced (fsync(2)).
_NO_DIR_SYNC = {errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EROFS}
_MKDIR_ATTEMPTS = 16
# How the names of temporary folders begin.
TEMPORARY = "kdpipe-"
_OS_ERROR = re.compile(r"\(os error ([0-9]{1,4})\)")
# Refusals for want of something: space, length of a file, open files.
SHORTAGES = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE}


class WriteFailed(OSError):
    """The system took no more bytes for a file of ours: told apart from what fails in the code that feeds it."""


class _File(io.FileIO):
    """A file that goes on refusing once it has lost bytes, and takes none that nobody wants any more."""

    refusal: WriteFailed | None = None
    is_given_up = False

    def write(self, data: Any) -> int:
        """Write, or raise `WriteFailed`."""
        if self.is_given_up:
            return memoryview(data).nbytes
        if self.refusal is None:
            try:
                return super().write(data)
            except OSError as error:
                self.refusal = WriteFailed(error.errno, error.strerror)
        raise self.refusal


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A new file that is on the disk when the block ends."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    raw = _File(descriptor, "wb")
    with io.BufferedWriter(raw, BUFFER_BYTES) as file:
        try:
            yield file
            file.flush()
            os.fsync(descriptor)
        except BaseException:
            raw.is_given_up = True
            raise


def apply_umask(path: Path) -> None:
    """Give a file of a library, which may have made it for its user alone, the permissions of any new file there."""
    probe = path.with_name(work_name(path.name[:40]))
    descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)
        os.unlink(probe)
    if stat.S_IMODE(path.stat().st_mode) != mode:
        path.chmod(mode)


def sync_dir(path: Path) -> None:
    """Make the names in a folder durable; Windows and some file systems have no such call."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_DIR_SYNC:
            raise
    finally:
        os.close(descriptor)


def make_dir(path: Path) -> None:
    """See to it that a folder is there, and durable in its parent whoever made it."""
    for _ in range(_MKDIR_ATTEMPTS):
        if path.is_dir():
            break
        if not path.parent.is_dir():
            make_dir(path.parent)
        try:
            os.mkdir(path)
        except FileNotFoundError:
            continue  # another writer has just swept the parent away
        except FileExistsError:
            if os.path.lexists(path) and not path.is_dir():
                raise
    sync_dir(path.parent)


@contextmanager
def work_folder(cache: Path, what: str) -> Iterator[Path]:
    """A folder to build something in; what is in it when the block ends, and was not published, goes."""
    work = cache / WORK / work_name(what)
    try:
        make_dir(work)
        yield work
    finally:
        remove_dir(work)


def publish_dir(work: Path, final: Path) -> bool:
    """Give a finished folder its name; false when another writer was first, whose folder then stands."""
    for folder, _, _ in os.walk(work, topdown=False):
        sync_dir(Path(folder))
    # Syncs what stands beside the parent too: tables that another writer gave their name a moment ago.
    make_dir(final.parent)
    is_first = True
    try:
        os.rename(work, final)
    except OSError as error:
        if error.errno not in _TAKEN or not final.is_dir():
            raise
        is_first = False
    # Also when another was first: it may have died before it came to this.
    sync_dir(final.parent)
    return is_first


def publish_file(cache: Path, final: Path, data: bytes) -> bool:
    """Write a file under its name at once; false when it is there already."""
    with work_folder(cache, final.name) as work:
        with new_file(work / final.name) as file:
            file.write(data)
        make_dir(final.parent)
        is_first = move_if_free(work / final.name, final)
        sync_dir(final.parent)
        return is_first


def replace_file(folder: Path, path: Path, data: bytes) -> None:
    """Write a file that is whole, or as it was before; `folder` holds the work folders."""
    with work_folder(folder, path.name) as work:
        with new_file(work / path.name) as file:
            file.write(data)
        os.replace(work / path.name, path)
        sync_dir(path.parent)
    with suppress(OSError):
        (folder / WORK).rmdir()


def link_file(there: Path, path: Path) -> bool:
    """Give a file that is never changed a second name, durably; false where the system allows no such link."""
    try:
        os.link(there, path, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS | {errno.EMLINK, errno.EACCES}:
            raise
        return False
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return True


def move_if_free(work: Path, final: Path) -> bool:
    """Give a finished file its name; false when there is one of that name, which then stays."""
    try:
        if os.name == "nt":
            os.rename(work, final)
        else:
            os.link(work, final)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # No hard links on this file system: the check and the rename are two steps, and whoever
        # loses compares afterwards.
        if final.exists():
            return False
        os.rename(work, final)
    return True


def remove_dir(path: Path) -> None:
    """Remove a folder of ours that nobody has been told about."""
    shutil.rmtree(path, ignore_errors=True)


def sweep(cache: Path) -> list[str]:
    """Remove what dead workers of this machine left behind; the work names of the others."""
    try:
        names = sorted(os.listdir(cache / WORK))
    except (FileNotFoundError, NotADirectoryError):
        return []
    for name in names:
        if is_abandoned(name):
            remove_dir(cache / WORK / name)
    return [name for name in names if not is_abandoned(name)]


def changed_within(folder: Path, seconds: float) -> bool:
    """Whether anything in a folder has changed within so many seconds, by this machine's clock."""
    changed = 0.0
    for inside, _, names in os.walk(folder):
        for name in (inside, *(os.path.join(inside, name) for name in names)):
            with suppress(FileNotFoundError):
                changed = max(changed, os.stat(name).st_mtime)
    return changed > time.time() - seconds


@contextmanager
def translate_os_errors(doing: str, where: Path, only: type[OSError] = OSError) -> Iterator[None]:
    """Turn the system's refusals into sentences that say what to do."""
    try:
        yield
    except only as error:
        raise WriteError(f"{doing}: {error.strerror or error} ({where})", hint=advice(error, where)) from error


def system_error(error: Exception) -> OSError | None:
    """What the system refused, by the words of a library that is written in Rust; None where it was something else."""
    number = _OS_ERROR.search(str(error))
    return None if number is None else OSError(int(number[1]), os.strerror(int(number[1])))


def advice(error: OSError, where: Path) -> str:
    """What to do about a refusal of the system."""
    again = "what was committed is safe; then run the same command again"
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            elsewhere = " or set TMPDIR to a folder of another disk" if _is_temporary(where) else ""
            return f"free some space on the disk of {where}{_free(where)}{elsewhere}: {again}"
        case errno.EFBIG:
            return f"raise the limit on file sizes (ulimit -f), or use smaller parts: {again}"
        case errno.EMFILE | errno.ENFILE:
            return f"raise the limit on open files (ulimit -n): {again}"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return "choose a folder that you may write to, or have its permissions changed"
        case errno.EEXIST | errno.ENOTDIR:
            return "a file stands where a folder is needed: choose another folder, or move the file away"
        case errno.ENOENT:
            return f"something removed a folder while it was written to; find out what: {again}"
    return f"see to the disk: {again}"


def _free(where: Path) -> str:
    """What is free there, where the system says so; a folder that was thrown away is on the disk of its parents."""
    for place in (where, *where.absolute().parents):
        with suppress(OSError):
            return f" ({shutil.disk_usage(place).free:,} bytes free)"
    return ""


def _is_temporary(where: Path) -> bool:
    """Whether a folder is one of ours below the temporary folder."""
    with suppress(OSError, ValueError):
        inside = where.absolute().relative_to(tempfile.gettempdir()).parts
        return not inside or inside[0].startswith(TEMPORARY)
    return False
