"""The protocols of stores: listings, small files and read-only views of large ones; and files to write."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from kdpipe.schemas.errors import CacheDamaged, FileReplaced

MAX_LISTED = 4096
HOLDS_MANIFEST = "give the folder that holds manifest.json"
URL_HOLDS_MANIFEST = "give the URL that holds manifest.json"
NO_LINKS = "a cache has plain files and folders only: no links, devices or pipes"


class Files(Protocol):
    """Files that are read whole or in ranges, by their names in a cache."""

    @property
    def url(self) -> str:
        """The address of the store."""

    def read(self, name: str, limit: int) -> bytes:
        """A small file, of at most `limit` bytes."""

    def read_range(self, name: str, begin: int, end: int, tag: str | None = None) -> bytes:
        """The bytes from `begin` to `end`; `CacheDamaged` for a shorter file, `FileReplaced` for another tag."""

    def tag(self, name: str) -> str | None:
        """A string that changes when the file is replaced, such as an ETag; None if the store has none."""


class Store(Files, Protocol):
    """A store that caches are read from."""

    def walk(self, folder: str, limit: int = MAX_LISTED) -> dict[str, int]:
        """Every file below a folder with its size; anything but plain files and folders is refused."""

    def names(self, folder: str) -> list[str]:
        """The names in a folder, sorted; empty if there is no such folder."""

    def size(self, name: str) -> int | None:
        """The size of a plain file, None if it does not exist."""

    def view(self, name: str, size: int) -> memoryview:
        """A file of a known size, memory-mapped if possible."""


class ListableStore(Store, Protocol):
    """A store that lists many files in one request."""

    def listed(self) -> dict[str, int] | None:
        """Every file with its size, from one listing; None if a listing may be incomplete."""

    def list_parts(self, sizes: Mapping[str, int] | None = None) -> dict[str, dict[str, int]]:
        """The files of every part with their sizes, by the part's folder, from one listing [`sizes`]."""


class WritableStore(ListableStore, Protocol):
    """A store that caches are written to: files appear whole, and `create` never replaces one."""

    def create(self, name: str, data: bytes) -> bool:
        """Write a small file; false if one of that name exists."""

    def put(self, name: str, path: Path) -> None:
        """Upload a local file, replacing an existing one."""

    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""

    def stored_name(self, name: str) -> str:
        """The name in the store of a file of a part."""


def checked_size(data: bytes, name: str, size: int) -> memoryview:
    """The bytes of a file, which must be of the expected size."""
    if len(data) != size:
        raise CacheDamaged(f"{name} has {len(data):,} bytes, expected {size:,}")
    return memoryview(data)


def check_tag(name: str, expected: str | None, current: str | None) -> None:
    """Refuse a range of a file that was replaced, if the store has tags."""
    if expected is not None and current is not None and current != expected:
        raise FileReplaced(f"{name} was replaced while it was read")
