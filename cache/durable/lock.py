"""The lock of a folder with one writer at a time: a run, an export.

In: a folder. Out: the lock until the block ends, or a `LockHeld` that names the holder. The system's lock (flock) ends
with its process, so the file of a killed one is taken over. The line in the file names the holder for messages, and for
hosts that flock does not reach.
"""

import errno
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, final

from kdpipe.cache.durable.files import sync_dir, translate_os_errors
from kdpipe.cache.durable.work_names import Process, has_ended, is_of_this_machine, this_process
from kdpipe.schemas.errors import ConfigError, FileDamaged, LockHeld
from kdpipe.schemas.lock_record import LockRecord
from kdpipe.schemas.records import read_record

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK: Final = "kdpipe.lock"
Say = Callable[[str], None]
# Errors of the system: a folder cannot be written to; a file system has no locks.
_UNWRITABLE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR),
    *(errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL),
}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_ATTEMPTS = 64
# A holder writes its line right after taking the lock.
_LINE_TRIES, _LINE_SECONDS = 50, 0.02
_MAX_LINE_BYTES = 1 << 13
_FAR = 1 << 20
_held_here: set[int] = set()


@contextmanager
def locked(folder: Path, say: Say, *, beside: bool = False) -> Iterator[None]:
    """Hold the lock of a folder; `beside` puts the file next to a folder that is renamed into place as a whole."""
    whole = Path(os.path.abspath(folder))
    if beside and not whole.name:
        raise ConfigError(f"{folder} is the root of a file system", hint="choose a new folder inside it")
    path = whole.with_name(f".{whole.name}.lock") if beside else folder / LOCK
    created: list[Path] = []
    try:
        try:
            file = _take(path, folder, created, say)
        except OSError as error:
            raise _refusal(folder, error) from error
        try:
            yield
        finally:
            file.release()
    finally:
        # Folders that were created for the lock alone are removed with it.
        with suppress(OSError):
            for parent in reversed(created):
                os.rmdir(parent)


def check_free(folder: Path) -> None:
    """Refuse a folder that is locked by another process, without taking the lock."""
    path = folder / LOCK
    _check_regular(path)
    try:
        holder = read_record(LockRecord, path.read_bytes(), str(path))
    except FileNotFoundError:
        return
    except (OSError, FileDamaged):
        holder = None
    if holder is None or not has_ended(_process(holder)):
        raise _in_use(folder, holder)


@final
class _LockFile:
    """An open lock file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = _open(path)
        _held_here.add(self._descriptor)

    def lock(self) -> bool:
        """Take the system's lock; false if the file system has no locks, BlockingIOError if it is held."""
        try:
            _lock(self._descriptor)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return False
        return True

    @property
    def has_its_name(self) -> bool:
        """Whether the file is still the one at its path: the previous holder may have removed it."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.lstat(self.path))
        except FileNotFoundError:
            return False

    def read(self) -> LockRecord | None:
        """The holder in the file; None if it is empty."""
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        line, end, _ = os.read(self._descriptor, _MAX_LINE_BYTES).partition(b"\n")
        return read_record(LockRecord, line + end, str(self.path)) if line else None

    def write(self) -> None:
        """Write this process as the holder."""
        own = this_process()
        record = LockRecord(
            pid=own.pid,
            started=own.started,
            host=own.host,
            machine=own.machine,
            boot=own.boot,
            pid_space=own.pid_space,
            since=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
        )
        line = record.to_json()
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        if os.write(self._descriptor, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.ftruncate(self._descriptor, len(line))

    def release(self) -> None:
        """Remove the file and release the lock, unless this is a forked child."""
        if self._descriptor not in _held_here:
            return
        is_own = False
        with suppress(OSError):
            is_own = self.has_its_name
        if os.name == "nt":  # an open file cannot be removed there
            self.close()
        with suppress(OSError):
            if is_own:
                os.unlink(self.path)
        self.close()

    def close(self) -> None:
        """Release the lock and keep the file."""
        if self._descriptor in _held_here:
            _held_here.discard(self._descriptor)
            os.close(self._descriptor)


def _open(path: Path) -> int:
    """Open or create a lock file; links are not followed, pipes do not block."""
    # O_BINARY exists on Windows, the others on POSIX.
    flags = [getattr(os, name, 0) for name in ("O_BINARY", "O_NOFOLLOW", "O_NONBLOCK")]
    try:
        descriptor = os.open(path, sum(flags, os.O_RDWR | os.O_CREAT), 0o666)
    except OSError:
        _check_regular(path)
        raise
    try:
        _check_regular(path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(path: Path) -> None:
    """Refuse anything but a regular file or no file as a lock."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode):
        raise ConfigError(f"{path} is not a regular file", hint="remove it and run again")


def _take(path: Path, folder: Path, created: list[Path], say: Say) -> _LockFile:
    for _ in range(_ATTEMPTS):
        _make_dirs(path.parent, created)
        try:
            file = _LockFile(path)
        except FileNotFoundError:
            continue  # another process has just removed the folder of its own lock
        try:
            has_locks = file.lock()
            if not file.has_its_name:
                file.close()
                continue
            _check_last(file, folder, has_locks=has_locks, say=say)
        except BlockingIOError:
            holder = _holder(file)
            file.close()
            raise _in_use(folder, holder) from None
        except BaseException:
            file.close()
            raise
        try:
            file.write()
        except BaseException:
            file.release()
            raise
        return file
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def _check_last(file: _LockFile, folder: Path, *, has_locks: bool, say: Say) -> None:
    """Refuse if the holder in the file may be running although the system's lock is free."""
    delete = f"if no process writes to {folder} any more, delete {file.path} and run again"
    try:
        last = file.read()
    except FileDamaged as error:
        raise LockHeld(f"the lock of {folder} cannot be read: {error.message}", hint=delete) from None
    if last is not None:
        process = _process(last)
        if not is_of_this_machine(process):
            raise _in_use(folder, last, f"the lock of another machine is never taken over: {delete}")
        if not has_locks and not has_ended(process):
            raise _in_use(folder, last, None if process.pid_space == this_process().pid_space else delete)
        say(f"took over the lock of process {last.pid}, which has ended")
    if not has_locks:
        say(f"the file system of {folder} has no locks: do not start two writers there at the same time")


def _holder(file: _LockFile) -> LockRecord | None:
    """The holder of the lock; None if the file never names one."""
    for _ in range(_LINE_TRIES):
        with suppress(FileDamaged):
            record = file.read()
            if record is not None and not has_ended(_process(record)):
                return record
        time.sleep(_LINE_SECONDS)
    return None


def _process(record: LockRecord) -> Process:
    return Process(**record.model_dump(exclude={"since"}))


def _in_use(folder: Path, holder: LockRecord | None, hint: str | None = None) -> LockHeld:
    holder_name = "another process"
    if holder is not None:
        holder_name = f"process {holder.pid} on {holder.host} since {holder.since}"
    hint = hint or "wait for it to end, stop it, or choose another folder"
    return LockHeld(f"{folder} is in use by {holder_name}", hint=hint)


def _refusal(folder: Path, error: OSError) -> ConfigError:
    """A folder that cannot be written to is a wrong setting; other errors are the disk's."""
    if error.errno not in _UNWRITABLE:
        with translate_os_errors("the folder cannot be locked", folder):
            raise error
    whole = Path(os.path.abspath(folder))
    nearest = next(path for path in (whole, *whole.parents) if os.path.lexists(path))
    if not os.path.isdir(nearest):
        return ConfigError(f"not a folder: {nearest}", hint="choose another folder, or move that file away")
    return ConfigError(
        f"not writable: {folder} ({error.strerror})", hint="fix its permissions, or choose another folder"
    )


def _make_dirs(folder: Path, created: list[Path]) -> None:
    """Create a folder and its parents, and append the new ones to `created`."""
    for path in reversed([path for path in (folder, *folder.parents) if not path.is_dir()]):
        try:
            os.mkdir(path)
        except FileExistsError:
            if not path.is_dir():
                raise
            continue
        created.append(path)
        sync_dir(path.parent)


if sys.platform == "win32":

    def _lock(descriptor: int) -> None:
        # A byte far behind the line, so that others can still read the line.
        os.lseek(descriptor, _FAR, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(errno.EAGAIN, error.strerror) from None

else:

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _forget_in_child() -> None:
    """Close the inherited locks: a forked child would hold them longer than its parent."""
    for descriptor in _held_here:
        os.close(descriptor)
    _held_here.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
