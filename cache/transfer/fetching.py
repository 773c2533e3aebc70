"""One file from another place: in pieces, from where it was cut off, and believed only when its digest is right.

In: a store, a name, the size and sha256 that the cache states. Out: a file on the disk that is those bytes.
Before it: `patience.py`, the stores. After it: `receiving.py` gives it its name. A file that is half there has the
place's tag beside it: where that has changed, the file begins anew.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from kdpipe.cache.store import Files
from kdpipe.cache.transfer.patience import Patience
from kdpipe.schemas.errors import CacheDamaged, Unreachable
from kdpipe.schemas.manifest import FileRecord

PIECE_BYTES: Final = 8 << 20
TAG: Final = ".tag"
# A place that gives wrong bytes for a whole file so often will not give right ones.
ATTEMPTS: Final = 3
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetcher:
    """Where from, how patiently, in what pieces, and who hears of bytes that came; `called` is a file's name there."""

    store: Files
    patience: Patience = field(default_factory=Patience)
    piece_bytes: int = PIECE_BYTES
    moved: Callable[[int], None] = lambda _: None
    called: Callable[[str], str] = lambda name: name
    told: Callable[[str], None] = lambda _: None

    def fetch(self, name: str, record: FileRecord, path: Path) -> None:
        """Bring a file to a path, whole and synced; what lies there already is gone on from."""
        for _ in range(ATTEMPTS):
            digest = self._fill(name, record, path)
            if digest == record.sha256:
                _forget_tag(path)
                return
            path.unlink()
            _forget_tag(path)
            self.moved(-record.bytes)
            self.told(f"{self.called(name)} came with other bytes than were written, and is fetched again")
        raise CacheDamaged(
            f"{self.called(name)} came from {self.store.url} with other bytes than were written, {ATTEMPTS} times",
            hint="kdpipe cache verify says whether it is damaged there",
        )

    def believed(self, read: Callable[[], Found]) -> Found:
        """What was read of records that check themselves; bytes that came wrong may come right another time."""
        for _ in range(ATTEMPTS - 1):
            try:
                return self.patience.through(read, self._again)
            except CacheDamaged as error:
                self.told(f"{error.message}; reading it again")
        return self.patience.through(read, self._again)

    def _fill(self, name: str, record: FileRecord, path: Path) -> str:
        """Append what is missing; the digest of all."""
        self._begin(name, record, path)
        digest = hashlib.sha256()
        with path.open("r+b") as file:
            while data := file.read(self.piece_bytes):
                digest.update(data)
                self.moved(len(data))
            here = file.tell()
            while here < record.bytes:
                data = self._piece(name, here, min(here + self.piece_bytes, record.bytes))
                file.write(data)
                digest.update(data)
                here += len(data)
                self.moved(len(data))
            file.flush()
            os.fsync(file.fileno())
        return digest.hexdigest()

    def _begin(self, name: str, record: FileRecord, path: Path) -> None:
        """See to it that a file is there to go on with: none that is too long, or of which the source has changed."""
        tag = path.with_name(path.name + TAG)
        if path.exists() and path.stat().st_size == record.bytes:
            return
        if record.bytes <= self.piece_bytes:  # comes at once or not at all
            path.write_bytes(b"")
            return
        found = self.patience.through(lambda: self.store.tag(name), self._again)
        known = tag.read_text("utf-8") if tag.exists() else None
        if not path.exists() or path.stat().st_size > record.bytes or known != found:
            path.write_bytes(b"")
            if found is not None:
                tag.write_text(found, "utf-8")

    def _piece(self, name: str, begin: int, end: int) -> bytes:
        return self.patience.through(lambda: self.store.piece(name, begin, end), self._again)

    def _again(self, error: Unreachable) -> None:
        self.told(f"{error.message}; trying again")


def _forget_tag(path: Path) -> None:
    path.with_name(path.name + TAG).unlink(missing_ok=True)
