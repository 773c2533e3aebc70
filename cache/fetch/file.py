"""Download of one file: in pieces, resumed after an interruption, accepted only with the right digest.

In: a store, a name, and the size and sha256 that the cache states. Out: a file on disk with these bytes. A partial file
has the source's tag (such as an HTTP ETag) beside it: if the tag has changed, the download starts over.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from kdpipe.cache.stores.protocol import Files
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.schemas.errors import CacheDamaged, FileReplaced, Unreachable
from kdpipe.schemas.manifest import FileRecord

PIECE_BYTES: Final = 16 << 20
TAG: Final = ".tag"
# A source that sent wrong bytes this often will not send the right ones.
ATTEMPTS: Final = 3
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetcher:
    """Downloads checked files from a store.

    `moved` gets byte counts, `on_restart` is called when a file starts over, `report` gets messages, `name_in_source`
    maps a file's name to its name in the source.
    """

    store: Files
    retry_policy: RetryPolicy = field(default_factory=RetryPolicy)
    piece_bytes: int = field(default_factory=lambda: PIECE_BYTES)
    moved: Callable[[int], None] = lambda _: None
    on_restart: Callable[[], None] = lambda: None
    name_in_source: Callable[[str], str] = lambda name: name
    report: Callable[[str], None] = lambda _: None

    def fetch(self, name: str, record: FileRecord, path: Path) -> None:
        """Download a file to a path, complete and synced; a partial file there is resumed."""
        source_name = self.name_in_source(name)
        for _ in range(ATTEMPTS):
            try:
                digest = self._fill(name, record, path)
                problem = f"{source_name} arrived with wrong bytes"
            except FileReplaced:
                digest, problem = None, f"{source_name} was replaced while it was read"
            if digest == record.sha256:
                _forget_tag(path)
                return
            self.moved(-path.stat().st_size)
            path.unlink()
            _forget_tag(path)
            self._restart(problem)
        message = f"{problem}, {ATTEMPTS} times, at {self.store.url}"
        if digest is None:
            raise Unreachable(message, hint="stop the program that writes there, then run the same command again")
        raise CacheDamaged(message, hint=f"check the source with kdpipe cache verify {self.store.url}")

    def read_checked(self, read: Callable[[], Result]) -> Result:
        """Read records that check themselves, and read again if they arrived damaged."""
        for _ in range(ATTEMPTS - 1):
            try:
                return self.retry_policy.call(read)
            except CacheDamaged as error:
                self.report(f"{error.message}; reading it again")
        return self.retry_policy.call(read)

    def _restart(self, problem: str) -> None:
        self.on_restart()
        self.report(f"{problem}; downloading it again")

    def _fill(self, name: str, record: FileRecord, path: Path) -> str:
        """Append the missing bytes; returns the digest of the file."""
        tag = self._begin(name, record, path)
        digest = hashlib.sha256()
        with path.open("r+b") as file:
            while data := file.read(self.piece_bytes):
                digest.update(data)
                self.moved(len(data))
            here = file.tell()
            while here < record.bytes:
                data = self._piece(name, here, min(here + self.piece_bytes, record.bytes), tag)
                file.write(data)
                digest.update(data)
                here += len(data)
                self.moved(len(data))
            file.flush()
            os.fsync(file.fileno())
        return digest.hexdigest()

    def _begin(self, name: str, record: FileRecord, path: Path) -> str | None:
        """Keep a partial file that can be resumed, or create an empty one; returns the tag expected of every piece."""
        tag = path.with_name(path.name + TAG)
        if path.exists() and path.stat().st_size == record.bytes:
            return None
        if record.bytes <= self.piece_bytes:  # a single piece
            _empty(path)
            return None
        current = self.retry_policy.call(lambda: self.store.tag(name))
        known = tag.read_text("utf-8") if tag.exists() else None
        if not path.exists() or path.stat().st_size > record.bytes or known != current:
            if known is not None and known != current:
                self._restart(f"{self.name_in_source(name)} was replaced since its download began")
            _empty(path)
            if current is not None:
                tag.write_text(current, "utf-8")
        return current

    def _piece(self, name: str, begin: int, end: int, tag: str | None) -> bytes:
        return self.retry_policy.call(lambda: self.store.read_range(name, begin, end, tag))


def _empty(path: Path) -> None:
    """Replace whatever has this name by an empty file."""
    path.unlink(missing_ok=True)
    path.write_bytes(b"")


def _forget_tag(path: Path) -> None:
    path.with_name(path.name + TAG).unlink(missing_ok=True)
