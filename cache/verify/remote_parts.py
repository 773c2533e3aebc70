"""The parts of a remote cache: several at once, each file downloaded once, through a temporary folder.

In: a store, and parts by number or record. Out: the record and problems of each, at the fast level or every byte; for
the deep level a local cache with a few parts at a time. zarr.json files follow from the manifest and the record, so
they are not downloaded. Files are removed with their part.
"""

import mmap
import shutil
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, final

from kdpipe.cache import layout
from kdpipe.cache.durable.files import remove_dir
from kdpipe.cache.durable.scratch import scratch_folder
from kdpipe.cache.fetch.file import Fetcher
from kdpipe.cache.parts.index import IndexRow
from kdpipe.cache.parts.part_bytes import part_bytes
from kdpipe.cache.parts.part_files import compare_listing, examine_record, metadata_files, part_problem
from kdpipe.cache.stores.http_store import HttpStore
from kdpipe.cache.stores.protocol import Store
from kdpipe.cache.stores.retries import RetryPolicy, map_concurrently
from kdpipe.cache.verify.once import CachedFiles
from kdpipe.schemas.choices import VerifyLevel
from kdpipe.schemas.errors import CacheDamaged, CacheWriteError
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.part import PartRecord
from kdpipe.schemas.progress import Progress, Task, counting
from kdpipe.schemas.verify_report import Problem

# Parts downloaded at once, as in a copy.
AT_ONCE: Final = 8
# Kept free on the disk of the temporary folder.
SPARE_BYTES: Final = 16 << 20
DOING: Final = "downloading parts to verify them"
Examined = tuple[PartRecord | None, list[Problem]]


@final
class RemoteParts:
    """Checks parts of a remote cache at a level; the deep level starts with every byte."""

    def __init__(self, store: CachedFiles, level: VerifyLevel, retry_policy: RetryPolicy, progress: Progress) -> None:
        self._cached, self._store, self._level = store, store.store, level
        self._retry_policy, self._progress = retry_policy, progress

    def examine(self, manifest: Manifest, numbers: Sequence[int], rows: Mapping[int, IndexRow]) -> list[Examined]:
        """The record and the problems of each at the fast level; higher levels request no sizes."""
        listed = self._cached.list_parts()
        with counting(self._progress, Task.of_parts("read records", len(numbers))) as count:

            def examined(number: int) -> Examined:
                result = self._examined(manifest, number, rows.get(number), listed)
                count()
                return result

            return map_concurrently(examined, numbers, AT_ONCE, self._retry_policy)

    def _examined(
        self, manifest: Manifest, number: int, row: IndexRow | None, listed: Mapping[str, dict[str, int]] | None
    ) -> Examined:
        record, problems = examine_record(self._store, manifest, number, row)
        if record is None:
            return None, problems
        folder = layout.part_dir(number)
        derived = metadata_files(manifest, record)
        if listed is not None:
            problems = compare_listing(number, record, dict(listed.get(folder, {})))
            if problems:  # a listing omits folders without permission: list this one
                try:
                    problems = compare_listing(number, record, self._store.walk(folder))
                except CacheDamaged as error:
                    return None, [part_problem(number, "", error.message)]
        elif self._level == "fast":
            sizes = {name: self._store.size(f"{folder}/{name}") for name in record.files if name not in derived}
            present = {f"{folder}/{name}": len(data) for name, data in derived.items()}
            present |= {f"{folder}/{name}": size for name, size in sizes.items() if size is not None}
            problems = compare_listing(number, record, present)
        for name, data in derived.items():
            if len(data) != record.files[name].bytes:
                problems.append(part_problem(number, name, "it describes another array than the manifest"))
        return record, problems

    def byte_problems(self, manifest: Manifest, records: Sequence[PartRecord]) -> list[Problem]:
        """The problems in the bytes of parts; their files are removed again."""
        with counting(self._progress, Task.of_parts("verify", len(records))) as count:

            def checked(record: PartRecord) -> list[Problem]:
                problems = self._bytes_of(manifest, record)
                count()
                return problems

            by_part = map_concurrently(checked, records, AT_ONCE, self._retry_policy)
        return [problem for problems in by_part for problem in problems]

    def _bytes_of(self, manifest: Manifest, record: PartRecord) -> list[Problem]:
        with scratch_folder("kdpipe-verify-", DOING, record.n_bytes) as folder:
            return self._download_and_check(manifest, record, folder)

    def _download_and_check(self, manifest: Manifest, record: PartRecord, folder: Path) -> list[Problem]:
        """Download a part into a folder, and check every byte."""
        return part_bytes(_RemotePart(self._store, self._retry_policy, record, manifest, folder), manifest, record)

    def local(
        self, manifest: Manifest, records: Sequence[PartRecord], folder: Path, room: int, problems: list[Problem]
    ) -> Generator[PartRecord, None, None]:
        """The parts without problems, each in a local cache in `folder` until the next one is taken.

        The problems of the others are added to `problems`. Parts are downloaded ahead within `room` bytes.
        """
        waiting, running, n_bytes = deque(records), deque[tuple[PartRecord, Future[list[Problem]]]](), 0
        pool = ThreadPoolExecutor(max_workers=AT_ONCE)
        try:
            while waiting or running:
                while waiting and len(running) < AT_ONCE and (not running or n_bytes + waiting[0].n_bytes <= room):
                    record = waiting.popleft()
                    running.append((record, pool.submit(self._download, manifest, record, folder)))
                    n_bytes += record.n_bytes
                record, future = running[0]
                if part_problems := future.result():
                    problems += part_problems
                else:
                    yield record
                remove_dir(folder / layout.part_dir(record.part))
                running.popleft()
                n_bytes -= record.n_bytes
        except BaseException:
            self._retry_policy.stop.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _download(self, manifest: Manifest, record: PartRecord, folder: Path) -> list[Problem]:
        """Download a part into a local cache, and check every byte."""
        own = folder / layout.part_dir(record.part)
        own.mkdir(parents=True)
        for name, data in metadata_files(manifest, record).items():
            (own / name).parent.mkdir(parents=True, exist_ok=True)
            (own / name).write_bytes(data)
        (own / layout.PART_RECORD).write_bytes(record.to_json())
        return self._download_and_check(manifest, record, own)


def free_bytes(folder: Path, manifest: Manifest, records: Sequence[PartRecord]) -> int:
    """How many bytes of parts fit into a folder, in addition to the tables."""
    tables = sum(table.n_bytes for table in manifest.tables)
    largest = max((record.n_bytes for record in records), default=0)
    free, needed = shutil.disk_usage(folder).free, tables + largest + SPARE_BYTES
    if free < needed:
        raise CacheWriteError(
            f"{DOING}: not enough space in {folder}: {free:,} bytes free, {needed:,} needed ("
            f"{largest:,} for the largest part, {tables:,} for tables, {SPARE_BYTES:,} as reserve)",
            hint=f"free {needed - free:,} bytes, or set TMPDIR to a folder with more space",
        )
    return free - tables - SPARE_BYTES


def most_at_once(manifest: Manifest, records: Sequence[PartRecord]) -> int:
    """The bytes of the tables and of the largest parts that are downloaded at once."""
    sizes = sorted((record.n_bytes for record in records), reverse=True)
    return sum(table.n_bytes for table in manifest.tables) + sum(sizes[:AT_ONCE])


@final
class _RemotePart:
    """The files of one part, each downloaded into a folder when it is first viewed."""

    def __init__(
        self, store: Store, retry_policy: RetryPolicy, record: PartRecord, manifest: Manifest, folder: Path
    ) -> None:
        self._part, self._files, self._folder = layout.part_dir(record.part), record.files, folder
        self._derived = metadata_files(manifest, record)
        self._fetcher = Fetcher(store=store, retry_policy=retry_policy)
        self._views: dict[str, memoryview] = {}

    def view(self, name: str, size: int) -> memoryview:
        """A downloaded file, or one derived from the record."""
        file = name.removeprefix(f"{self._part}/")
        if file in self._derived:
            return memoryview(self._derived[file])
        if file not in self._views:
            path = self._folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            store = self._fetcher.store
            self._fetcher.fetch(name, self._files[file], path)
            length = store.length_seen() if isinstance(store, HttpStore) and size else None
            if length is not None and length != size:
                raise CacheDamaged(f"the file has {length:,} bytes, {size:,} were written")
            if not size:
                return memoryview(b"")
            with path.open("rb") as data:
                mapped = mmap.mmap(data.fileno(), size, access=mmap.ACCESS_READ)
            self._views[file] = memoryview(mapped)
        return self._views[file]
