"""A cache in a folder of this machine; files are mapped, links are not followed."""

import errno
import io
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdpipe.cache.layout import part_dir
from kdpipe.cache.stores.addresses import local_path
from kdpipe.cache.stores.attempts import AttemptStore
from kdpipe.cache.stores.protocol import HOLDS_MANIFEST, MAX_LISTED, NO_LINKS, check_tag
from kdpipe.schemas.errors import CacheDamaged, CacheError, ConfigError, KdpipeError

# Answers about what lies there: a name that is missing, too long, a link, a folder in the place of a file, a socket.
# Any other refusal is about this process and the system, and says nothing against the cache.
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
        # A relative path would lead elsewhere once the process, or the one that it is sent to, changes its folder.
        self._root = root.absolute()
        self.url = str(self._root)
        self._homes = AttemptStore(self._size, self._read)

    def _path(self, name: str) -> Path:
        """The path of a name, no folder of which may be a link."""
        path = self._root
        *folders, last = name.split("/")
        for folder in folders:
            path = path / folder
            if path.is_symlink():
                raise CacheDamaged(f"{folder} in the path {name} is a link", hint=NO_LINKS)
        return path / last

    def part_prefix(self, number: int) -> str:
        """The folder in which the files of a part lie."""
        folder = part_dir(number)
        return f"{folder}/{self._homes.of(folder)}"

    def walk(self, folder: str, limit: int = MAX_LISTED) -> dict[str, int]:
        """See `Store`."""
        found: dict[str, int] = {}
        open_folders = [folder]
        n_seen = 0
        while open_folders:
            current = open_folders.pop()
            with self._reaching(current, "listed"), os.scandir(self._path(f"{current}/")) as entries:
                for entry in entries:
                    n_seen += 1
                    name = f"{current}/{_shown(entry.name)}"
                    if n_seen > limit:
                        raise CacheDamaged(f"{folder} holds more than {limit} files and folders")
                    if entry.is_dir(follow_symlinks=False):
                        open_folders.append(name)
                    else:
                        found[name] = _plain_size(entry.stat(follow_symlinks=False), name)
        return self._homes.listed(folder, found)

    def modes(self, folder: str) -> list[tuple[str, int]]:
        """The names in a folder with their modes, sorted; none when it is not there."""
        with self._reaching(folder, "listed"):
            try:
                with os.scandir(self._path(f"{folder}/")) as entries:
                    return sorted((f"{folder}/{_shown(entry.name)}", _mode(entry)) for entry in entries)
            except FileNotFoundError:
                return []

    def names(self, folder: str) -> list[str]:
        """See `Store`."""
        with self._reaching(folder, "listed"):
            path = self._path(folder)
            try:
                status = os.lstat(path)
            except (FileNotFoundError, NotADirectoryError):
                return []
            if folder and not stat.S_ISDIR(status.st_mode):
                raise CacheDamaged(f"{folder} is no folder")
            with os.scandir(path) as entries:
                return sorted(_shown(entry.name) for entry in entries)

    def size(self, name: str) -> int | None:
        """See `Store`."""
        return self._size(self._homes.place(name))

    def _size(self, name: str) -> int | None:
        with self._reaching(name, "read"):
            try:
                return _plain_size(os.lstat(self._path(name)), name)
            except (FileNotFoundError, NotADirectoryError):
                return None

    def read(self, name: str, limit: int) -> bytes:
        """See `Store`."""
        return self._read(self._homes.place(name), limit)

    def _read(self, name: str, limit: int) -> bytes:
        with self._reaching(name, "read"):
            descriptor, size = self._open(name)
            with open(descriptor, "rb", buffering=0) as file:
                if size > limit:
                    raise CacheDamaged(f"{name} holds {size:,} bytes, at most {limit:,} are allowed")
                return file.read(size) or b""

    def view(self, name: str, size: int) -> memoryview:
        """See `Store`."""
        name = self._homes.place(name)
        with self._reaching(name, "read"):
            descriptor, found = self._open(name)
            try:
                if found != size:
                    raise CacheDamaged(f"{name} holds {found:,} bytes, {size:,} were written")
                if not size:
                    return memoryview(b"")
                return memoryview(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ))
            finally:
                os.close(descriptor)

    def read_range(self, name: str, begin: int, end: int, tag: str | None = None) -> bytes:
        """See `Store`."""
        name = self._homes.place(name)
        with self._reaching(name, "read"):
            descriptor, size = self._open(name)
            with open(descriptor, "rb", buffering=0) as file:
                if size < end:
                    raise CacheDamaged(f"{name} holds {size:,} bytes, {end:,} were written")
                file.seek(begin)
                found = _exactly(file, end - begin)
                check_tag(name, tag, _tag_of(os.fstat(descriptor)))
                return found

    def tag(self, name: str) -> str | None:
        """See `Store`."""
        name = self._homes.place(name)
        with self._reaching(name, "read"):
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
    def _reaching(self, name: str, what: str) -> Iterator[None]:
        """Tell what is wrong with a cache from what the system does not let this process do."""
        try:
            yield
        except OSError as error:
            if error.errno == errno.ENOMEM:  # as a map of a file answers
                raise MemoryError(f"{name} cannot be {what}: {error.strerror}") from None
            if error.errno in _ABOUT_THE_CACHE:
                raise CacheDamaged(f"{name} cannot be {what}: {error.strerror}") from None
            raise _no_access(self._root / name, what, error) from None


def _tag_of(status: os.stat_result) -> str:
    return f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"


def _exactly(file: io.RawIOBase, n_bytes: int) -> bytes:
    """So many bytes; the system may give them in pieces."""
    found = bytearray()
    while len(found) < n_bytes:
        more = file.read(n_bytes - len(found))
        if not more:
            raise CacheDamaged(f"a file grew shorter while it was read: {len(found):,} of {n_bytes:,} bytes")
        found += more
    return bytes(found)


def _refuse_other_than_folder(root: Path) -> None:
    try:
        status = os.stat(root)
    except ValueError:
        raise ConfigError(f"{str(root)!r} is no path", hint=HOLDS_MANIFEST) from None
    except OSError as error:
        if error.errno in _ABOUT_THE_CACHE:
            raise ConfigError(f"there is no folder {root}", hint=HOLDS_MANIFEST) from None
        raise _no_access(root, "looked at", error) from None
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"{root} is a file, not a folder", hint=f"{HOLDS_MANIFEST}: {root.absolute().parent}?")


def _no_access(path: Path, what: str, error: OSError) -> KdpipeError:
    if error.errno in (errno.EACCES, errno.EPERM):
        hint = "change its permissions or those of the folders above it, or run as a user who may read it"
    elif error.errno in (errno.EMFILE, errno.ENFILE):
        hint = "raise the limit on open files (ulimit -n)"
    else:
        hint = "see that the disk or the network behind it answers, then try again"
    return CacheError(f"{path} cannot be {what}: {error.strerror or error}", hint=hint)


def _shown(name: str) -> str:
    """A name as it is, or escaped where a terminal or JSON would stumble over it: then it is none of a cache."""
    return name if name.isprintable() else ascii(name)[1:-1]


def _mode(entry: "os.DirEntry[str]") -> int:
    """The kind of an entry, which a listing tells without another look for files and folders."""
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    return stat.S_IFDIR if entry.is_dir(follow_symlinks=False) else entry.stat(follow_symlinks=False).st_mode


def _plain_size(status: os.stat_result, name: str) -> int:
    if not stat.S_ISREG(status.st_mode):
        raise CacheDamaged(f"{name} is no plain file", hint=NO_LINKS)
    return status.st_size
