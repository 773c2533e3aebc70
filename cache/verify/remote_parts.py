"""The parts of a cache behind a URL: several at once, each file asked for once, through a temporary folder.

In: a store, and parts by their numbers or records. Out: the record of each and its problems, at the fast level or byte
for byte; for the deep level a local cache of the parts that are there, a few at a time. A copy asks for no less: each
zarr.json follows from the manifest and the record, so neither reads it. Memory stays small, since files go to the disk
as they come and are removed with their part.
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
from kdpipe.schemas.verify_report import Problem

# Parts at once, as many as a copy brings.
AT_ONCE: Final = 8
# Left free on the disk of the temporary folder.
SPARE_BYTES: Final = 16 << 20
DOING: Final = "fetching parts to verify them"
Examined = tuple[PartRecord | None, list[Problem]]


@final
class RemoteParts:
    """Examines parts of a cache at a level; the deep level begins with every byte."""

    def __init__(self, store: CachedFiles, level: VerifyLevel, retry_policy: RetryPolicy) -> None:
        self._asked, self._store, self._level, self._retry_policy = store, store.store, level, retry_policy

    def examine(self, manifest: Manifest, numbers: Sequence[int], rows: Mapping[int, IndexRow]) -> list[Examined]:
        """The record and the problems of each, as the fast level sees them; a level above it asks for no sizes."""
        listed = self._asked.list_parts()
        return map_concurrently(
            lambda number: self._examined(manifest, number, rows.get(number), listed),
            numbers,
            AT_ONCE,
            self._retry_policy,
        )

    def _examined(
        self, manifest: Manifest, number: int, row: IndexRow | None, listed: Mapping[str, dict[str, int]] | None
    ) -> Examined:
        record, problems = examine_record(self._store, manifest, number, row)
        if record is None:
            return None, problems
        folder = layout.part_dir(number)
        made = metadata_files(manifest, record)
        if listed is not None:
            problems = compare_listing(number, record, dict(listed.get(folder, {})))
            if problems:  # a listing keeps quiet about folders that it may not see: this one is asked for by itself
                try:
                    problems = compare_listing(number, record, self._store.walk(folder))
                except CacheDamaged as error:
                    return None, [part_problem(number, "", error.message)]
        elif self._level == "fast":
            asked = {name: self._store.size(f"{folder}/{name}") for name in record.files if name not in made}
            there = {f"{folder}/{name}": len(data) for name, data in made.items()}
            there |= {f"{folder}/{name}": size for name, size in asked.items() if size is not None}
            problems = compare_listing(number, record, there)
        for name, data in made.items():
            if len(data) != record.files[name].bytes:
                problems.append(part_problem(number, name, "it does not describe the array that the manifest does"))
        return record, problems

    def byte_problems(self, manifest: Manifest, records: Sequence[PartRecord]) -> list[Problem]:
        """The problems in the bytes of parts; none of their files stays."""
        found = map_concurrently(lambda record: self._bytes_of(manifest, record), records, AT_ONCE, self._retry_policy)
        return [problem for problems in found for problem in problems]

    def _bytes_of(self, manifest: Manifest, record: PartRecord) -> list[Problem]:
        with scratch_folder("kdpipe-verify-", DOING, record.n_bytes) as folder:
            return self._fetched(manifest, record, folder)

    def _fetched(self, manifest: Manifest, record: PartRecord, folder: Path) -> list[Problem]:
        """Fetch a part into a folder, and look at every byte of it."""
        return part_bytes(_Fetched(self._store, self._retry_policy, record, manifest, folder), manifest, record)

    def local(
        self, manifest: Manifest, records: Sequence[PartRecord], folder: Path, room: int, problems: list[Problem]
    ) -> Generator[PartRecord, None, None]:
        """The parts that are good byte for byte, each in a local cache in `folder` until the next one is asked for.

        What is wrong with the others goes to `problems`. Parts are fetched ahead as far as there is `room`, in bytes.
        """
        left, here, n_bytes = deque(records), deque[tuple[PartRecord, Future[list[Problem]]]](), 0
        pool = ThreadPoolExecutor(max_workers=AT_ONCE)
        try:
            while left or here:
                while left and len(here) < AT_ONCE and (not here or n_bytes + left[0].n_bytes <= room):
                    record = left.popleft()
                    here.append((record, pool.submit(self._bring, manifest, record, folder)))
                    n_bytes += record.n_bytes
                record, coming = here[0]
                found = coming.result()
                if found:
                    problems += found
                else:
                    yield record
                remove_dir(folder / layout.part_dir(record.part))
                here.popleft()
                n_bytes -= record.n_bytes
        except BaseException:
            self._retry_policy.stop.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _bring(self, manifest: Manifest, record: PartRecord, folder: Path) -> list[Problem]:
        """Fetch a part into a local cache."""
        own = folder / layout.part_dir(record.part)
        own.mkdir(parents=True)
        for name, data in metadata_files(manifest, record).items():
            (own / name).parent.mkdir(parents=True, exist_ok=True)
            (own / name).write_bytes(data)
        (own / layout.PART_RECORD).write_bytes(record.to_json())
        return self._fetched(manifest, record, own)


def room_in(folder: Path, manifest: Manifest, records: Sequence[PartRecord]) -> int:
    """How many bytes of parts may lie in a folder at once, beside the tables that come into it."""
    tables = sum(table.n_bytes for table in manifest.tables)
    largest = max((record.n_bytes for record in records), default=0)
    free, needed = shutil.disk_usage(folder).free, tables + largest + SPARE_BYTES
    if free < needed:
        raise CacheWriteError(
            f"{DOING}: {folder} has {free:,} bytes free, {needed:,} are needed: {largest:,} for the largest part, "
            f"{tables:,} for tables, and {SPARE_BYTES:,} that stay free",
            hint=f"free {needed - free:,} bytes, or set TMPDIR to a folder with more room",
        )
    return free - tables - SPARE_BYTES


def most_at_once(manifest: Manifest, records: Sequence[PartRecord]) -> int:
    """The bytes of tables, and of so many of the largest parts as are there at once where there is room."""
    sizes = sorted((record.n_bytes for record in records), reverse=True)
    return sum(table.n_bytes for table in manifest.tables) + sum(sizes[:AT_ONCE])


@final
class _Fetched:
    """The files of one part, each fetched into a folder when it is first viewed."""

    def __init__(
        self, store: Store, retry_policy: RetryPolicy, record: PartRecord, manifest: Manifest, folder: Path
    ) -> None:
        self._part, self._files, self._folder = layout.part_dir(record.part), record.files, folder
        self._made = metadata_files(manifest, record)
        self._fetcher = Fetcher(store=store, retry_policy=retry_policy)
        self._here: dict[str, memoryview] = {}

    def view(self, name: str, size: int) -> memoryview:
        """A file that has come, or is made from the record."""
        file = name.removeprefix(f"{self._part}/")
        if file in self._made:
            return memoryview(self._made[file])
        if file not in self._here:
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
            self._here[file] = memoryview(mapped)
        return self._here[file]
