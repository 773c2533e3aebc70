"""What readers need of a place: listings, small files, and read-only views of large ones. Nothing is ever written."""

from typing import Protocol

from kdpipe.schemas.errors import CacheDamaged, FileReplaced

MAX_LISTED = 4096
HOLDS_MANIFEST = "give the folder that holds manifest.json"
URL_HOLDS_MANIFEST = "give the URL that holds manifest.json"
NO_LINKS = "a cache holds plain files and folders only: no links, devices or pipes"


class Files(Protocol):
    """Where files are read whole or in pieces, by the names that they have in a cache."""

    @property
    def url(self) -> str:
        """The place."""

    def read(self, name: str, limit: int) -> bytes:
        """A small file as a whole."""

    def read_range(self, name: str, begin: int, end: int, tag: str | None = None) -> bytes:
        """The bytes from `begin` up to `end` of a file that has as many; `FileReplaced` where it has another tag."""

    def tag(self, name: str) -> str | None:
        """What changes when the file is replaced, as far as the place tells; None where it does not."""


class Store(Files, Protocol):
    """What the reader asks of a place."""

    def walk(self, folder: str, limit: int = MAX_LISTED) -> dict[str, int]:
        """Every file below a folder with its size; anything but plain files and folders is refused."""

    def names(self, folder: str) -> list[str]:
        """The names in a folder, sorted; none when it is not there."""

    def size(self, name: str) -> int | None:
        """The size of a plain file, None when there is none of that name."""

    def view(self, name: str, size: int) -> memoryview:
        """A file of a known size, without reading it if that can be helped."""


def checked_size(data: bytes, name: str, size: int) -> memoryview:
    """What was fetched whole, if it is as long as it was written."""
    if len(data) != size:
        raise CacheDamaged(f"{name} holds {len(data):,} bytes, {size:,} were written")
    return memoryview(data)


def check_tag(name: str, due: str | None, found: str | None) -> None:
    """Refuse a piece of another file than the one that was begun, as far as the place tells."""
    if due is not None and found is not None and found != due:
        raise FileReplaced(f"{name} was replaced while it was read")
