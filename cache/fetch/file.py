"""One file from another place: in pieces, from where it was cut off, and believed only when its digest is right.

In: a store, a name, the size and sha256 that the cache states. Out: a file on the disk that is those bytes. A file that
is half there has the place's tag beside it: where that has changed, the file begins anew.
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
# A place that gives wrong bytes for a whole file so often will not give right ones.
ATTEMPTS: Final = 3
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetcher:
    """Where from, how patiently, in what pieces, who hears of bytes that came, and of files that begin anew.

    `called` is a file's name there.
    """

    store: Files
    retry_policy: RetryPolicy = field(default_factory=RetryPolicy)
    piece_bytes: int = field(default_factory=lambda: PIECE_BYTES)
    moved: Callable[[int], None] = lambda _: None
    anew: Callable[[], None] = lambda: None
    called: Callable[[str], str] = lambda name: name
    told: Callable[[str], None] = lambda _: None

    def fetch(self, name: str, record: FileRecord, path: Path) -> None:
        """Bring a file to a path, whole and synced; what lies there already is gone on from."""
        called = self.called(name)
        for _ in range(ATTEMPTS):
            try:
                digest = self._fill(name, record, path)
                what = f"{called} came with other bytes than were written"
            except FileReplaced:
                digest, what = None, f"{called} was replaced while it was read"
            if digest == record.sha256:
                _forget_tag(path)
                return
            self.moved(-path.stat().st_size)
            path.unlink()
            _forget_tag(path)
            self._begin_anew(what)
        told = f"{what}, {ATTEMPTS} times, at {self.store.url}"
        if digest is None:
            raise Unreachable(told, hint="see who writes there, and run the same command again once nobody does")
        raise CacheDamaged(told, hint="kdpipe cache verify says whether it is damaged there")

    def believed(self, read: Callable[[], Found]) -> Found:
        """What was read of records that check themselves; bytes that came wrong may come right another time."""
        for _ in range(ATTEMPTS - 1):
            try:
                return self.retry_policy.call(read)
            except CacheDamaged as error:
                self.told(f"{error.message}; reading it again")
        return self.retry_policy.call(read)

    def _begin_anew(self, why: str) -> None:
        self.anew()
        self.told(f"{why}, and is fetched again")

    def _fill(self, name: str, record: FileRecord, path: Path) -> str:
        """Append what is missing; the digest of all."""
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
        """See to it that a file is there to go on with: none that is too long, or of which the source has changed.

        The source's tag is that of every piece, where there is more than one.
        """
        tag = path.with_name(path.name + TAG)
        if path.exists() and path.stat().st_size == record.bytes:
            return None
        if record.bytes <= self.piece_bytes:  # comes at once or not at all
            _empty(path)
            return None
        found = self.retry_policy.call(lambda: self.store.tag(name))
        known = tag.read_text("utf-8") if tag.exists() else None
        if not path.exists() or path.stat().st_size > record.bytes or known != found:
            if known is not None and known != found:
                self._begin_anew(f"{self.called(name)} was replaced since it was begun")
            _empty(path)
            if found is not None:
                tag.write_text(found, "utf-8")
        return found

    def _piece(self, name: str, begin: int, end: int, tag: str | None) -> bytes:
        return self.retry_policy.call(lambda: self.store.read_range(name, begin, end, tag))


def _empty(path: Path) -> None:
    """A new file, whatever the name stood for."""
    path.unlink(missing_ok=True)
    path.write_bytes(b"")


def _forget_tag(path: Path) -> None:
    path.with_name(path.name + TAG).unlink(missing_ok=True)
