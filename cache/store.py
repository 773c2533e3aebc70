"""Where a cache lies: a local folder that is mapped, or an fsspec URL whose files are fetched whole.

In: a path or URL. Out: listings, small files and read-only views of large ones; nothing is ever written.
Before it: nothing. After it: `part_files.py`, `reader.py` and `verify/`. `remote.py` holds the fsspec store.
"""

import mmap
import os
import stat
from pathlib import Path
from typing import Protocol

from kdpipe.schemas.errors import CacheDamaged, ConfigError

MAX_LISTED = 4096
NO_LINKS = "a cache holds plain files and folders only: no links, devices or pipes"


class Store(Protocol):
    """What the reader asks of a place."""

    url: str

    def walk(self, folder: str, limit: int = MAX_LISTED) -> dict[str, int]:
        """Every file below a folder with its size; anything but plain files and folders is refused."""

    def names(self, folder: str) -> list[str]:
        """The names in a folder, sorted; none when it is not there."""

    def size(self, name: str) -> int | None:
        """The size of a plain file, None when there is none of that name."""

    def read(self, name: str, limit: int) -> bytes:
        """A small file as a whole."""

    def view(self, name: str, size: int) -> memoryview:
        """A file of a known size, without reading it if that can be helped."""


def open_store(url: str | os.PathLike[str]) -> Store:
    """The store of a path or URL."""
    text = os.fspath(url)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if "://" in text or text.startswith("memory:"):
        from kdpipe.cache.remote import RemoteStore

        return RemoteStore(text)
    return LocalStore(Path(text))


class LocalStore:
    """A folder; files are mapped, links are not followed."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise ConfigError(f"there is no folder {root}", hint="give the folder that holds manifest.json")
        # A relative path would lead elsewhere once the process, or the one that it is sent to, changes its folder.
        self._root = root.absolute()
        self.url = str(self._root)

    def _path(self, name: str) -> Path:
        """The path of a name, no folder of which may be a link."""
        path = self._root
        *folders, last = name.split("/")
        for folder in folders:
            path = path / folder
            if path.is_symlink():
                raise CacheDamaged(f"{folder} in the path {name} is a link", hint=NO_LINKS)
        return path / last

    def walk(self, folder: str, limit: int = MAX_LISTED) -> dict[str, int]:
        """See `Store`."""
        found: dict[str, int] = {}
        open_folders = [folder]
        n_seen = 0
        while open_folders:
            current = open_folders.pop()
            with _scan(self._path(f"{current}/")) as entries:
                for entry in entries:
                    n_seen += 1
                    name = f"{current}/{_shown(entry.name)}"
                    if n_seen > limit:
                        raise CacheDamaged(f"{folder} holds more than {limit} files and folders")
                    if entry.is_dir(follow_symlinks=False):
                        open_folders.append(name)
                    else:
                        found[name] = _plain_size(entry.stat(follow_symlinks=False), name)
        return found

    def names(self, folder: str) -> list[str]:
        """See `Store`."""
        path = self._path(folder)
        if not os.path.lexists(path):
            return []
        if folder and not stat.S_ISDIR(os.lstat(path).st_mode):
            raise CacheDamaged(f"{folder or self.url} is no folder")
        with _scan(path) as entries:
            return sorted(_shown(entry.name) for entry in entries)

    def size(self, name: str) -> int | None:
        """See `Store`."""
        try:
            return _plain_size(os.lstat(self._path(name)), name)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read(self, name: str, limit: int) -> bytes:
        """See `Store`."""
        descriptor, size = self._open(name)
        with open(descriptor, "rb", buffering=0) as file:
            if size > limit:
                raise CacheDamaged(f"{name} holds {size:,} bytes, at most {limit:,} are allowed")
            return file.read(size) or b""

    def view(self, name: str, size: int) -> memoryview:
        """See `Store`."""
        descriptor, found = self._open(name)
        try:
            if found != size:
                raise CacheDamaged(f"{name} holds {found:,} bytes, {size:,} were written")
            if not size:
                return memoryview(b"")
            return memoryview(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ))
        finally:
            os.close(descriptor)

    def _open(self, name: str) -> tuple[int, int]:
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        try:
            descriptor = os.open(self._path(name), flags)
        except OSError as error:
            raise CacheDamaged(f"{name} cannot be read: {error.strerror}") from None
        try:
            return descriptor, _plain_size(os.fstat(descriptor), name)
        except CacheDamaged:
            os.close(descriptor)
            raise


def _scan(path: Path) -> "os._ScandirIterator[str]":
    try:
        return os.scandir(path)
    except OSError as error:
        raise CacheDamaged(f"{path.name} cannot be listed: {error.strerror}") from None


def _shown(name: str) -> str:
    """A name as it is, or escaped where a terminal or JSON would stumble over it: then it is none of a cache."""
    return name if name.isprintable() else ascii(name)[1:-1]


def _plain_size(status: os.stat_result, name: str) -> int:
    if not stat.S_ISREG(status.st_mode):
        raise CacheDamaged(f"{name} is no plain file", hint=NO_LINKS)
    return status.st_size
