"""A cache to a URL: parts first, each part's record after its files, the index last, nothing that is there replaced.

In: a source, a place that can be written to. Out: the same cache there. Several may send the same cache at once: the
bytes of a name are the same whoever sends them, and records are created, never overwritten.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdpipe.cache import layout
from kdpipe.cache.durable.files import translate_os_errors
from kdpipe.cache.durable.scratch import scratch_folder
from kdpipe.cache.fetch.file import Fetcher, Found
from kdpipe.cache.fetch.receiver import ANOTHER, refuse_other
from kdpipe.cache.parts.index import IndexRow
from kdpipe.cache.parts.part_bytes import part_bytes
from kdpipe.cache.parts.part_files import checked_record, read_part_record
from kdpipe.cache.stores.fsspec_store import RemoteFolder
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.schemas.errors import CacheDamaged, CacheWriteError, ConfigError
from kdpipe.schemas.manifest import FileRecord, Manifest, read_manifest
from kdpipe.schemas.part import PartRecord
from kdpipe.schemas.strict_json import MAX_BYTES, sha256_hex

if TYPE_CHECKING:
    from kdpipe.cache.stores.hub_store import HubFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """Sends parts of the cache that `fetcher` reads to `place`; every byte is checked on the way.

    To `mend` a place its bytes are read again, and what is damaged there is replaced.
    """

    place: "RemoteFolder | HubFolder"
    retry_policy: RetryPolicy
    manifest: Manifest
    fetcher: Fetcher
    mend: bool = False

    def begin(self, data: bytes) -> None:
        """Put the manifest there, or find it there; another cache's place is refused."""
        if self._create(layout.MANIFEST, data):
            return
        found = self._read(layout.MANIFEST, MAX_BYTES)
        if found == data:
            return
        try:
            there = read_manifest(found, layout.MANIFEST)
        except CacheDamaged as error:
            if self.mend:
                self._replace(layout.MANIFEST, data)
                return
            raise ConfigError(f"{self.place.url} holds another cache: {error.message}", hint=ANOTHER) from None
        refuse_other(self.place.url, there, self.manifest)

    def has(self, row: IndexRow) -> bool:
        """Whether a part is there: its record, and files of the right sizes, to mend it of the right bytes."""
        folder = layout.part_dir(row.part)
        name = f"{folder}/{layout.PART_RECORD}"
        if self._size(name) is None:
            return False
        if sha256_hex(self._read(name, layout.MAX_RECORD_BYTES)) != row.sha256:
            if self.mend:
                return False
            raise CacheWriteError(f"{self.place.url}/{name} is of another part than the cache has", hint=ANOTHER)
        store = self.fetcher.store
        record, _ = self.fetcher.believed(lambda: read_part_record(store, self.manifest, row.part, row))
        due = {f"{folder}/{file}": one.bytes for file, one in record.files.items()}
        found = self._patiently(lambda: self.place.walk(folder))
        if not due.items() <= found.items():
            return False
        return not self.mend or not self._patiently(lambda: part_bytes(self.place, self.manifest, record))

    def send_shared(self, files: dict[str, FileRecord]) -> None:
        """Send the files of the whole cache that are not there."""
        for name, record in files.items():
            size = self._size(name)
            if size != record.bytes or (self.mend and sha256_hex(self._read(name, size)) != record.sha256):
                self._send(name, record)

    def send_part(self, row: IndexRow) -> None:
        """Send a part."""
        folder = layout.part_dir(row.part)
        name = f"{folder}/{layout.PART_RECORD}"
        record, data = self.fetcher.believed(lambda: self._record(name, row))
        if self.mend and self._size(name) is not None and self._read(name, layout.MAX_RECORD_BYTES) != data:
            self._replace(name, data)  # it tells where the files lie
        for file in sorted(record.files):
            self._send(f"{folder}/{file}", record.files[file])
        if self.mend:
            self._replace(name, data)
        else:
            self._put_record(name, data)

    def _record(self, name: str, row: IndexRow) -> tuple[PartRecord, bytes]:
        data = self.fetcher.store.read(name, layout.MAX_RECORD_BYTES)
        return checked_record(data, self.manifest, row.part, row)[0], data

    def finish(self, index: bytes) -> None:
        """Send the index."""
        self._put_record(layout.INDEX, index)

    def sign(self, signature: bytes) -> None:
        """Send the signature that stands beside the cache, in place of another one."""
        if not self._create(layout.SIGNATURE, signature) and self._read(layout.SIGNATURE, MAX_BYTES) != signature:
            self._replace(layout.SIGNATURE, signature)

    def _put_record(self, name: str, data: bytes) -> None:
        if self._create(name, data) or self._read(name, len(data) + MAX_BYTES) == data:
            return
        if self.mend:
            self._replace(name, data)
        else:
            raise CacheWriteError(f"{self.place.url}/{name} is there and differs from the cache's own", hint=ANOTHER)

    def _replace(self, name: str, data: bytes) -> None:
        self._patiently(lambda: self.place.remove(name))
        self._create(name, data)

    def _send(self, name: str, record: FileRecord) -> None:
        """Check a file's bytes on this disk, and send those."""
        doing = f"fetching {name} on its way"
        with scratch_folder("kdpipe-copy-", doing, record.bytes) as work:
            path = work / "file"
            with translate_os_errors(doing, work):
                self.fetcher.fetch(name, record, path)
            # What is mended stays where it lies: in a bucket perhaps in the folder of an attempt.
            stored_name = self._patiently(lambda: self.place.stored_name(name)) if self.mend else name
            self._patiently(lambda: self.place.put(stored_name, path))

    def _size(self, name: str) -> int | None:
        return self._patiently(lambda: self.place.size(name))

    def _create(self, name: str, data: bytes) -> bool:
        return self._patiently(lambda: self.place.create(name, data))

    def _read(self, name: str, limit: int) -> bytes:
        return self._patiently(lambda: self.place.read(name, limit))

    def _patiently(self, work: Callable[[], Found]) -> Found:
        return self.retry_policy.call(work)
