"""Publishing to a URL: a bucket, or a repository of the Hugging Face Hub.

In: finished files of a cache. Out: a cache behind a URL, written by one worker or many. Nothing can be renamed there:
the files of a part go into a folder named by the digest of its part.json, which is created last and never replaced.
"""

import tempfile
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, final

import numpy.typing as npt

from kdpipe.cache import layout
from kdpipe.cache.catalog import same_manifest
from kdpipe.cache.durable.files import remove_dir, work_folder
from kdpipe.cache.durable.scratch import temporary_folder_errors
from kdpipe.cache.stores.dispatch import open_folder
from kdpipe.cache.stores.local_store import LocalStore
from kdpipe.cache.stores.protocol import WritableStore
from kdpipe.cache.stores.retries import RetryingStore, RetryPolicy
from kdpipe.cache.writing.bucket_tables import BucketTables
from kdpipe.cache.writing.writer import CacheWriter
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.manifest import Manifest

Result = TypeVar("Result")


@final
class BucketPublisher:
    """Publishes a cache to `remote`; parts are built in a temporary folder that is removed with this object."""

    is_local = False

    def __init__(self, remote: WritableStore, manifest: Manifest, retry_policy: RetryPolicy) -> None:
        with temporary_folder_errors("creating a temporary folder for parts to upload"):
            self.path = Path(tempfile.mkdtemp(prefix="kdpipe-out-"))
        weakref.finalize(self, remove_dir, self.path)
        self.remote, self._retry_policy = remote, retry_policy
        self.store, self.table_store = RetryingStore(remote, retry_policy), LocalStore(self.path)
        self._tables = BucketTables(remote, retry_policy, manifest, self.path)

    def has_tables(self) -> bool:
        if not self._tables.are_published():
            return False
        self._tables.download()
        return True

    def publish_tables(self, tables: Mapping[str, npt.NDArray[Any]]) -> None:
        if not self._tables.are_published():
            self._tables.publish(tables)
        self._tables.download()

    def publish_tokenizer(self, files: Mapping[str, bytes]) -> None:
        for name, data in files.items():
            self._create(f"{layout.TOKENIZER}/{name}", data)

    def work_folder(self, number: int) -> AbstractContextManager[Path]:
        return work_folder(self.path, f"{number:05d}")

    def publish_part(self, number: int, work: Path) -> bool:
        """Upload the files, then the record; the files of a part that another worker published first are removed."""
        folder = layout.part_dir(number)
        record = (work / layout.PART_RECORD).read_bytes()
        attempt = f"{folder}/{layout.attempt(record)}"
        paths = sorted(path for path in work.rglob("*") if path.is_file() and path.name != layout.PART_RECORD)
        names = [f"{attempt}/{path.relative_to(work).as_posix()}" for path in paths]
        for name, path in zip(names, paths, strict=True):
            self._retried(partial(self.remote.put, name, path))
        record_name = f"{folder}/{layout.PART_RECORD}"
        is_first = self._create(record_name, record)
        if not is_first and self.store.read(record_name, layout.MAX_RECORD_BYTES) != record:
            for name in names:
                self._retried(partial(self.remote.remove, name))
        return is_first

    def started(self) -> set[int]:
        return set()

    def under_way(self) -> set[int]:
        """None: a bucket does not show what other workers write; a part written twice is harmless."""
        return set()

    def publish_journal(self, number: int, data: bytes) -> None:
        self._create(layout.journal_file(number), data)

    def publish_index(self, data: bytes) -> None:
        self._create(layout.INDEX, data)
        self._tables.tidy()

    def _create(self, name: str, data: bytes) -> bool:
        return self._retried(lambda: self.remote.create(name, data))

    def _retried(self, work: Callable[[], Result]) -> Result:
        return self._retry_policy.call(work)


def create_bucket(url: str, manifest: Manifest, retry_policy: RetryPolicy | None = None) -> CacheWriter:
    """Create a cache at a URL, or resume one with the same manifest; another manifest there is refused."""
    retry_policy = (retry_policy or RetryPolicy()).at(url)
    remote = retry_policy.call(lambda: open_folder(url))
    store = RetryingStore(remote, retry_policy)
    if store.size(layout.MANIFEST) is None:
        names = store.names("")
        # Another worker may have created the cache in the meantime.
        if names and layout.MANIFEST not in names:
            raise ConfigError(
                f"{url} holds other files and no {layout.MANIFEST}: {', '.join(names[:3])}",
                hint="choose a new or empty URL",
            )
        retry_policy.call(lambda: remote.create(layout.MANIFEST, manifest.to_json()))
    present = same_manifest(store, manifest, url)
    return CacheWriter(BucketPublisher(remote, present, retry_policy), present)
