"""Uploading a cache to a URL: parts first, each part's record after its files, the index last, nothing overwritten.

In: a source, and a URL that can be written to. Out: the same cache at the URL. Several processes may upload the same
cache at once: a name has the same bytes from each of them, and records are created, never overwritten.
"""

from collections.abc import Callable
from dataclasses import dataclass

from kdpipe.cache import layout
from kdpipe.cache.durable.files import translate_os_errors
from kdpipe.cache.durable.scratch import scratch_folder
from kdpipe.cache.fetch.file import Fetcher, Result
from kdpipe.cache.fetch.receiver import OTHER_PLACE, refuse_other_cache
from kdpipe.cache.parts.index import IndexRow
from kdpipe.cache.parts.part_bytes import part_bytes
from kdpipe.cache.parts.part_files import checked_record, read_part_record
from kdpipe.cache.stores.protocol import WritableStore
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.schemas.errors import CacheDamaged, CacheWriteError, ConfigError
from kdpipe.schemas.manifest import FileRecord, Manifest, read_manifest
from kdpipe.schemas.part import PartRecord
from kdpipe.schemas.strict_json import MAX_BYTES, sha256_hex


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """Uploads parts of the cache that `fetcher` reads to `remote`; every byte is checked before it is sent.

    With `repair` the uploaded bytes are read again, and damaged files are replaced.
    """

    remote: WritableStore
    retry_policy: RetryPolicy
    manifest: Manifest
    fetcher: Fetcher
    repair: bool = False

    def begin(self, data: bytes) -> None:
        """Upload the manifest unless it is already there; the URL of another cache is refused."""
        if self._create(layout.MANIFEST, data):
            return
        present = self._read(layout.MANIFEST, MAX_BYTES)
        if present == data:
            return
        try:
            other = read_manifest(present, layout.MANIFEST)
        except CacheDamaged as error:
            if self.repair:
                self._replace(layout.MANIFEST, data)
                return
            raise ConfigError(f"{self.remote.url} holds another cache: {error.message}", hint=OTHER_PLACE) from None
        refuse_other_cache(self.remote.url, other, self.manifest)

    def has(self, row: IndexRow) -> bool:
        """Whether a part is present: its record, and files of the right sizes, or with `repair` the right bytes."""
        folder = layout.part_dir(row.part)
        name = f"{folder}/{layout.PART_RECORD}"
        if self._size(name) is None:
            return False
        if sha256_hex(self._read(name, layout.MAX_RECORD_BYTES)) != row.sha256:
            if self.repair:
                return False
            raise CacheWriteError(f"{self.remote.url}/{name} belongs to another cache", hint=OTHER_PLACE)
        store = self.fetcher.store
        record, _ = self.fetcher.read_checked(lambda: read_part_record(store, self.manifest, row.part, row))
        expected = {f"{folder}/{name}": file.bytes for name, file in record.files.items()}
        present = self._retried(lambda: self.remote.walk(folder))
        if not expected.items() <= present.items():
            return False
        return not self.repair or not self._retried(lambda: part_bytes(self.remote, self.manifest, record))

    def send_shared(self, files: dict[str, FileRecord]) -> None:
        """Upload the tokenizer and tables that are missing."""
        for name, record in files.items():
            size = self._size(name)
            if size != record.bytes or (self.repair and sha256_hex(self._read(name, size)) != record.sha256):
                self._send(name, record)

    def send_part(self, row: IndexRow) -> None:
        folder = layout.part_dir(row.part)
        name = f"{folder}/{layout.PART_RECORD}"
        record, data = self.fetcher.read_checked(lambda: self._record(name, row))
        if self.repair and self._size(name) is not None and self._read(name, layout.MAX_RECORD_BYTES) != data:
            self._replace(name, data)  # it determines where the files are
        for file in sorted(record.files):
            self._send(f"{folder}/{file}", record.files[file])
        if self.repair:
            self._replace(name, data)
        else:
            self._put_record(name, data)

    def _record(self, name: str, row: IndexRow) -> tuple[PartRecord, bytes]:
        data = self.fetcher.store.read(name, layout.MAX_RECORD_BYTES)
        return checked_record(data, self.manifest, row.part, row)[0], data

    def finish(self, index: bytes) -> None:
        self._put_record(layout.INDEX, index)

    def sign(self, signature: bytes) -> None:
        """Upload the signature, in place of an older one."""
        if not self._create(layout.SIGNATURE, signature) and self._read(layout.SIGNATURE, MAX_BYTES) != signature:
            self._replace(layout.SIGNATURE, signature)

    def _put_record(self, name: str, data: bytes) -> None:
        if self._create(name, data) or self._read(name, len(data) + MAX_BYTES) == data:
            return
        if self.repair:
            self._replace(name, data)
        else:
            raise CacheWriteError(f"{self.remote.url}/{name} exists and differs from the source", hint=OTHER_PLACE)

    def _replace(self, name: str, data: bytes) -> None:
        self._retried(lambda: self.remote.remove(name))
        self._create(name, data)

    def _send(self, name: str, record: FileRecord) -> None:
        """Download a file, check it, and upload it."""
        doing = f"downloading {name} to upload it"
        with scratch_folder("kdpipe-copy-", doing, record.bytes) as work:
            path = work / "file"
            with translate_os_errors(doing, work):
                self.fetcher.fetch(name, record, path)
            # In a bucket a file may be in the folder of an attempt: it is replaced there.
            location = self._retried(lambda: self.remote.stored_name(name)) if self.repair else name
            self._retried(lambda: self.remote.put(location, path))

    def _size(self, name: str) -> int | None:
        return self._retried(lambda: self.remote.size(name))

    def _create(self, name: str, data: bytes) -> bool:
        return self._retried(lambda: self.remote.create(name, data))

    def _read(self, name: str, limit: int) -> bytes:
        return self._retried(lambda: self.remote.read(name, limit))

    def _retried(self, work: Callable[[], Result]) -> Result:
        return self.retry_policy.call(work)
