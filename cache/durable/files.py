"""Durable files: written under a work name, synced, renamed once, never over another file.

In: bytes and paths. Out: files that are whole or missing, even after a kill or a power cut. Work names contain their
owner, see `work_names.py`.
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
# Errors of Linux on file systems without fsync for folders, or without anything to sync (fsync(2)).
_NO_DIR_SYNC = {errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EROFS}
_MKDIR_ATTEMPTS = 16
# Prefix of the names of temporary folders.
TEMPORARY = "kdpipe-"
_OS_ERROR = re.compile(r"\(os error ([0-9]{1,4})\)")
# Errors about limits: disk space, file size, open files.
SHORTAGES = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE}


class WriteFailed(OSError):
    """The system refused a write to one of our files, as opposed to an error in the code that produces the bytes."""


class _File(io.FileIO):
    """A file that refuses every write after a failed one, and ignores writes once it is abandoned."""

    refusal: WriteFailed | None = None
    is_abandoned = False

    def write(self, data: Any) -> int:
        """Write, or raise `WriteFailed`."""
        if self.is_abandoned:
            return memoryview(data).nbytes
        if self.refusal is None:
            try:
                return super().write(data)
            except OSError as error:
                self.refusal = WriteFailed(error.errno, error.strerror)
        raise self.refusal


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A new file that is synced to the disk when the block ends."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    raw = _File(descriptor, "wb")
    with io.BufferedWriter(raw, BUFFER_BYTES) as file:
        try:
            yield file
            file.flush()
            os.fsync(descriptor)
        except BaseException:
            raw.is_abandoned = True
            raise


def apply_umask(path: Path) -> None:
    """Give a file of a library the permissions of other new files: it may be readable by its user alone."""
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
    """Make the names in a folder durable, if the file system can."""
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
    """Create a folder if it is missing, and make it durable in its parent."""
    for _ in range(_MKDIR_ATTEMPTS):
        if path.is_dir():
            break
        if not path.parent.is_dir():
            make_dir(path.parent)
        try:
            os.mkdir(path)
        except FileNotFoundError:
            continue  # another writer has just removed the parent
        except FileExistsError:
            if os.path.lexists(path) and not path.is_dir():
                raise
    sync_dir(path.parent)


@contextmanager
def work_folder(cache: Path, what: str) -> Iterator[Path]:
    """A temporary folder inside a cache; what has not been published is deleted when the block ends."""
    work = cache / WORK / work_name(what)
    try:
        make_dir(work)
        yield work
    finally:
        remove_dir(work)


def publish_dir(work: Path, final: Path) -> bool:
    """Rename a finished folder into place; false if another writer was first, whose folder is kept."""
    for folder, _, _ in os.walk(work, topdown=False):
        sync_dir(Path(folder))
    # Also syncs siblings of the parent: tables that another writer has just renamed.
    make_dir(final.parent)
    is_first = True
    try:
        os.rename(work, final)
    except OSError as error:
        if error.errno not in _TAKEN or not final.is_dir():
            raise
        is_first = False
    # Also if another was first: it may have died before its own sync.
    sync_dir(final.parent)
    return is_first


def publish_file(cache: Path, final: Path, data: bytes) -> bool:
    """Write a file that appears whole under its name; false if it exists."""
    with work_folder(cache, final.name) as work:
        with new_file(work / final.name) as file:
            file.write(data)
        make_dir(final.parent)
        is_first = move_if_free(work / final.name, final)
        sync_dir(final.parent)
        return is_first


def replace_file(folder: Path, path: Path, data: bytes) -> None:
    """Replace a file: its content is the old or the new one; `folder` has the work folders."""
    with work_folder(folder, path.name) as work:
        with new_file(work / path.name) as file:
            file.write(data)
        os.replace(work / path.name, path)
        sync_dir(path.parent)
    with suppress(OSError):
        (folder / WORK).rmdir()


def link_file(source: Path, path: Path) -> bool:
    """Hard-link a file that is never changed, durably; false if the system allows no such link."""
    try:
        os.link(source, path, follow_symlinks=False)
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
    """Rename a finished file into place; false if one of that name exists, which is kept."""
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
        # Without hard links the check and the rename are two steps; the loser of a race compares afterwards.
        if final.exists():
            return False
        os.rename(work, final)
    return True


def remove_dir(path: Path) -> None:
    """Remove an unpublished folder."""
    shutil.rmtree(path, ignore_errors=True)


def sweep(cache: Path) -> list[str]:
    """Remove work folders of dead processes of this machine; the names of the others."""
    try:
        names = sorted(os.listdir(cache / WORK))
    except (FileNotFoundError, NotADirectoryError):
        return []
    for name in names:
        if is_abandoned(name):
            remove_dir(cache / WORK / name)
    return [name for name in names if not is_abandoned(name)]


def changed_within(folder: Path, seconds: float) -> bool:
    """Whether anything in a folder has changed within the last seconds, by the clock of this machine."""
    changed = 0.0
    for inside, _, names in os.walk(folder):
        for name in (inside, *(os.path.join(inside, name) for name in names)):
            with suppress(FileNotFoundError):
                changed = max(changed, os.stat(name).st_mtime)
    return changed > time.time() - seconds


@contextmanager
def translate_os_errors(doing: str, where: Path, only: type[OSError] = OSError) -> Iterator[None]:
    """Translate errors of the system into `WriteError`s with a hint."""
    try:
        yield
    except only as error:
        raise WriteError(f"{doing}: {error.strerror or error} ({where})", hint=advice(error, where)) from error


def system_error(error: Exception) -> OSError | None:
    """The OSError in the message of a Rust library; None for other errors."""
    number = _OS_ERROR.search(str(error))
    return None if number is None else OSError(int(number[1]), os.strerror(int(number[1])))


def advice(error: OSError, where: Path) -> str:
    """The hint for an error of the system."""
    again = "committed parts are safe; then run the same command again"
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            elsewhere = " or set TMPDIR to a folder of another disk" if _is_temporary(where) else ""
            return f"free some space on the disk of {where}{_free(where)}{elsewhere}: {again}"
        case errno.EFBIG:
            return f"raise the limit on file sizes (ulimit -f), or use smaller parts: {again}"
        case errno.EMFILE | errno.ENFILE:
            return f"raise the limit on open files (ulimit -n): {again}"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return "fix the permissions of the folder, or choose another one"
        case errno.EEXIST | errno.ENOTDIR:
            return "there is a file in place of a folder: move it away, or choose another folder"
        case errno.ENOENT:
            return f"another program removed a folder during the write; find out which: {again}"
    return f"check the disk: {again}"


def _free(where: Path) -> str:
    """The free bytes of a folder's disk, if known; a deleted folder is on the disk of its parents."""
    for place in (where, *where.absolute().parents):
        with suppress(OSError):
            return f" ({shutil.disk_usage(place).free:,} bytes free)"
    return ""


def _is_temporary(where: Path) -> bool:
    """Whether a folder is one of kdpipe's temporary folders."""
    with suppress(OSError, ValueError):
        inside = where.absolute().relative_to(tempfile.gettempdir()).parts
        return not inside or inside[0].startswith(TEMPORARY)
    return False
