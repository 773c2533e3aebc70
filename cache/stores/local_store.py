"""A cache in a local folder; files are memory-mapped, links are not followed."""

import errno
import io
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdpipe.cache.layout import MANIFEST, part_dir
from kdpipe.cache.stores.addresses import local_path
from kdpipe.cache.stores.attempts import AttemptStore
from kdpipe.cache.stores.protocol import HOLDS_MANIFEST, MAX_LISTED, NO_LINKS, check_tag
from kdpipe.schemas.errors import CacheDamaged, CacheError, ConfigError, KdpipeError, nearest_name

# Errors about the cache itself: a missing or too long name, a link, a folder instead of a file, a socket.
# Other errors concern this process or the system.
_ABOUT_THE_CACHE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO}


def open_local(address: str, _: object = None) -> "LocalStore":
    """The store of a path or a file:// URL, which needs no retry policy."""
    path = local_path(address)
    if not path:
        raise ConfigError("the path of the cache is empty", hint=HOLDS_MANIFEST)
    return LocalStore(Path(path))


class LocalStore:
    """A folder; files are memory-mapped, links are not followed."""

    def __init__(self, root: Path) -> None:
        _refuse_other_than_folder(root)
        # A relative path would change its meaning with the working directory, also in another process.
        self._root = root.absolute()
        self.url = str(self._root)
        self._attempts = AttemptStore(self._size, self._read)

    def _path(self, name: str) -> Path:
        """The path of a name; folders that are links are refused."""
        path = self._root
        *folders, last = name.split("/")
        for folder in folders:
            path = path / folder
            if path.is_symlink():
                raise CacheDamaged(f"{folder} in the path {name} is a link", hint=NO_LINKS)
        return path / last

    def part_prefix(self, number: int) -> str:
        """The folder with the files of a part, relative to the cache."""
        folder = part_dir(number)
        return f"{folder}/{self._attempts.prefix(folder)}"

    def walk(self, folder: str, limit: int = MAX_LISTED) -> dict[str, int]:
        sizes: dict[str, int] = {}
        open_folders = [folder]
        n_seen = 0
        while open_folders:
            current = open_folders.pop()
            with self._errors(current, "listed"), os.scandir(self._path(f"{current}/")) as entries:
                for entry in entries:
                    n_seen += 1
                    name = f"{current}/{_shown(entry.name)}"
                    if n_seen > limit:
                        raise CacheDamaged(f"{folder} holds more than {limit} files and folders")
                    if entry.is_dir(follow_symlinks=False):
                        open_folders.append(name)
                    else:
                        sizes[name] = _plain_size(entry.stat(follow_symlinks=False), name)
        return self._attempts.listed(folder, sizes)

    def modes(self, folder: str) -> list[tuple[str, int]]:
        """The names in a folder with their modes, sorted; empty if it does not exist."""
        with self._errors(folder, "listed"):
            try:
                with os.scandir(self._path(f"{folder}/")) as entries:
                    return sorted((f"{folder}/{_shown(entry.name)}", _mode(entry)) for entry in entries)
            except FileNotFoundError:
                return []

    def names(self, folder: str) -> list[str]:
        with self._errors(folder, "listed"):
            path = self._path(folder)
            try:
                status = os.lstat(path)
            except (FileNotFoundError, NotADirectoryError):
                return []
            if folder and not stat.S_ISDIR(status.st_mode):
                raise CacheDamaged(f"{folder} is not a folder")
            with os.scandir(path) as entries:
                return sorted(_shown(entry.name) for entry in entries)

    def size(self, name: str) -> int | None:
        return self._size(self._attempts.stored_name(name))

    def _size(self, name: str) -> int | None:
        with self._errors(name, "read"):
            try:
                return _plain_size(os.lstat(self._path(name)), name)
            except (FileNotFoundError, NotADirectoryError):
                return None

    def read(self, name: str, limit: int) -> bytes:
        return self._read(self._attempts.stored_name(name), limit)

    def _read(self, name: str, limit: int) -> bytes:
        with self._errors(name, "read"):
            descriptor, size = self._open(name)
            with open(descriptor, "rb", buffering=0) as file:
                if size > limit:
                    raise CacheDamaged(f"{name} has {size:,} bytes, at most {limit:,} are allowed")
                return file.read(size) or b""

    def view(self, name: str, size: int) -> memoryview:
        name = self._attempts.stored_name(name)
        with self._errors(name, "read"):
            descriptor, size_now = self._open(name)
            try:
                if size_now != size:
                    raise CacheDamaged(f"{name} has {size_now:,} bytes, expected {size:,}")
                if not size:
                    return memoryview(b"")
                return memoryview(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ))
            finally:
                os.close(descriptor)

    def read_range(self, name: str, begin: int, end: int, tag: str | None = None) -> bytes:
        name = self._attempts.stored_name(name)
        with self._errors(name, "read"):
            descriptor, size = self._open(name)
            with open(descriptor, "rb", buffering=0) as file:
                if size < end:
                    raise CacheDamaged(f"{name} has {size:,} bytes, expected at least {end:,}")
                file.seek(begin)
                data = _exactly(file, end - begin)
                check_tag(name, tag, _tag_of(os.fstat(descriptor)))
                return data

    def tag(self, name: str) -> str | None:
        name = self._attempts.stored_name(name)
        with self._errors(name, "read"):
            status = os.lstat(self._path(name))
            _plain_size(status, name)
            return _tag_of(status)

    def _open(self, name: str) -> tuple[int, int]:
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(self._path(name), flags)
        try:
            return descriptor, _plain_size(os.fstat(descriptor), name)
        except BaseException:
            os.close(descriptor)
            raise

    @contextmanager
    def _errors(self, name: str, what: str) -> Iterator[None]:
        """Translate errors: damage of the cache, or refused access."""
        try:
            yield
        except OSError as error:
            if error.errno == errno.ENOMEM:  # mmap raises it
                raise MemoryError(f"{name} cannot be {what}: {error.strerror}") from None
            if error.errno in _ABOUT_THE_CACHE:
                raise CacheDamaged(f"{name} cannot be {what}: {error.strerror}") from None
            raise _no_access(self._root / name, what, error) from None


def _tag_of(status: os.stat_result) -> str:
    return f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"


def _exactly(file: io.RawIOBase, n_bytes: int) -> bytes:
    """Read exactly n bytes; one call may return fewer."""
    data = bytearray()
    while len(data) < n_bytes:
        more = file.read(n_bytes - len(data))
        if not more:
            raise CacheDamaged(f"a file was truncated while it was read: {len(data):,} of {n_bytes:,} bytes")
        data += more
    return bytes(data)


def _refuse_other_than_folder(root: Path) -> None:
    try:
        status = os.stat(root)
    except ValueError:
        raise ConfigError(f"{str(root)!r} is not a valid path", hint=HOLDS_MANIFEST) from None
    except OSError as error:
        if error.errno in _ABOUT_THE_CACHE:
            near = _similar_cache(root)
            hint = HOLDS_MANIFEST if near is None else f"did you mean {near}?"
            raise ConfigError(f"no such folder: {root}", hint=hint, nearest=near) from None
        raise _no_access(root, "opened", error) from None
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"{root} is a file, not a folder", hint=f"{HOLDS_MANIFEST}: {root.absolute().parent}?")


def _similar_cache(root: Path) -> str | None:
    """The cache in the same folder with the most similar name."""
    try:
        names = [entry.name for entry in root.parent.iterdir() if (entry / MANIFEST).is_file()]
    except OSError:
        return None
    near = nearest_name(root.name, names)
    return None if near is None else str(root.parent / near)


def _no_access(path: Path, what: str, error: OSError) -> KdpipeError:
    if error.errno in (errno.EACCES, errno.EPERM):
        hint = "fix its permissions or those of its parent folders, or run as another user"
    elif error.errno in (errno.EMFILE, errno.ENFILE):
        hint = "raise the limit on open files (ulimit -n)"
    else:
        hint = "check the disk or network file system, then try again"
    return CacheError(f"{path} cannot be {what}: {error.strerror or error}", hint=hint)


def _shown(name: str) -> str:
    """A name, escaped if it has control characters; no file of a cache has any."""
    return name if name.isprintable() else ascii(name)[1:-1]


def _mode(entry: "os.DirEntry[str]") -> int:
    """The file type of an entry; for files and folders without another system call."""
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    return stat.S_IFDIR if entry.is_dir(follow_symlinks=False) else entry.stat(follow_symlinks=False).st_mode


def _plain_size(status: os.stat_result, name: str) -> int:
    if not stat.S_ISREG(status.st_mode):
        raise CacheDamaged(f"{name} is not a plain file", hint=NO_LINKS)
    return status.st_size
