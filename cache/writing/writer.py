"""`CacheWriter`: a cache under construction, written by one worker or many, killed and resumed any number of times.

In: a manifest, its tables and tokenizer files, then the parts in any order. Out: a sealed cache. Files appear complete
and once, in the order in which they depend on each other: manifest, tables, parts, index. How they are published is up
to the `Publisher`: `folder.py` for a local folder, `bucket.py` for a bucket or a Hub repository.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, final

import numpy as np
import numpy.typing as npt

from kdpipe.cache import layout
from kdpipe.cache.catalog import committed_parts
from kdpipe.cache.durable.files import WriteFailed, new_file, translate_os_errors
from kdpipe.cache.parts.index import IndexRow, read_index, write_index
from kdpipe.cache.parts.part_files import examine_part, part_grids, read_part_record
from kdpipe.cache.parts.part_writer import PartWriter
from kdpipe.cache.parts.tables import read_table, table_records
from kdpipe.cache.parts.tokenizer_files import fingerprint_problem
from kdpipe.cache.stores.protocol import Store
from kdpipe.schemas.errors import CacheDamaged, CacheIncomplete, CacheWriteError
from kdpipe.schemas.manifest import FileRecord, Manifest
from kdpipe.schemas.part import PartRecord
from kdpipe.schemas.strict_json import canonical, sha256_hex


class Publisher(Protocol):
    """Publishes the files of one cache; what another worker published first is kept."""

    @property
    def path(self) -> Path:
        """The local folder in which parts are built."""

    @property
    def is_local(self) -> bool:
        """Whether published files stay on this machine."""

    @property
    def store(self) -> Store:
        """The published files."""

    @property
    def table_store(self) -> Store:
        """The published tables, on this machine."""

    def has_tables(self) -> bool:
        """Whether all tables are published."""

    def publish_tables(self, tables: Mapping[str, npt.NDArray[Any]]) -> None:
        """Publish all tables together."""

    def publish_tokenizer(self, files: Mapping[str, bytes]) -> None:
        """Publish tokenizer files by their path in tokenizer/."""

    def work_folder(self, number: int) -> AbstractContextManager[Path]:
        """A folder to build a part in, removed at the end."""

    def publish_part(self, number: int, work: Path) -> bool:
        """Publish a complete part; false when another worker was first."""

    def started(self) -> set[int]:
        """Parts for which any worker has a work folder."""

    def under_way(self) -> set[int]:
        """Parts that another worker seems to be writing."""

    def publish_journal(self, number: int, data: bytes) -> None:
        """Publish the journal file of a part."""

    def publish_index(self, data: bytes) -> None:
        """Publish the index, then remove leftovers of the construction."""


@final
class CacheWriter:
    """Writes parts and has them published; `create_cache` makes one."""

    def __init__(self, publisher: Publisher, manifest: Manifest) -> None:
        self.publisher, self.manifest, self.path = publisher, manifest, publisher.path
        self._store = publisher.store
        self._written: set[int] = set()
        self._table_records: dict[str, FileRecord] | None = None
        self._rank_of_id: npt.NDArray[np.uint32] | None = None

    @property
    def has_tables(self) -> bool:
        """Whether the tables are published, by this worker or another."""
        return self.publisher.has_tables()

    def publish_tables(self, tables: Mapping[str, npt.NDArray[Any]]) -> None:
        """Publish the fitted tables, unless another worker was first: then its tables are used."""
        self.publisher.publish_tables(tables)

    def table(self, name: str) -> npt.NDArray[Any]:
        """A published table."""
        store = self.publisher.table_store
        return read_table(store, self.manifest.table(name), table_records(store, self.manifest))

    def publish_tokenizer(self, files: Mapping[str, bytes]) -> None:
        """Publish the tokenizer's files, which must match the manifest."""
        records = {name: FileRecord(bytes=len(data), sha256=sha256_hex(data)) for name, data in files.items()}
        expected = self.manifest.tokenizer.files
        if records != expected:
            wrong = sorted(name for name in records.keys() | expected.keys() if records.get(name) != expected.get(name))
            raise CacheWriteError(
                f"tokenizer files differ from the manifest: {', '.join(wrong[:4])}",
                hint="use the tokenizer that this cache was created with, or create another cache",
            )
        if not files:
            return
        if (problem := fingerprint_problem(files, self.manifest.tokenizer.fingerprint)) is not None:
            raise CacheWriteError(
                f"{layout.TOKENIZER}: {problem}",
                hint="compute the manifest's fingerprint with kdpipe.cache.parts.tokenizer_content",
            )
        self.publisher.publish_tokenizer(files)

    @property
    def wrote_all(self) -> bool:
        """Whether every part stayed on this machine and was written, and so digested, by this writer."""
        return self.publisher.is_local and len(self._written) == self.manifest.plan.n_parts

    def committed(self) -> list[int]:
        """The numbers of the published parts."""
        return committed_parts(self._store, self.manifest)

    def record(self, number: int) -> tuple[PartRecord, int]:
        """The record of a published part, and the bytes of all its files."""
        record, row = read_part_record(self._store, self.manifest, number, None)
        return record, row.n_bytes

    def missing(self) -> list[int]:
        """The parts still to write; those that another worker seems to be writing come last."""
        committed = set(self.committed())
        missing = [number for number in range(self.manifest.plan.n_parts) if number not in committed]
        started = self.publisher.started()
        return sorted(missing, key=lambda number: (number in started, number))

    def under_way(self) -> set[int]:
        """The parts that another worker seems to be writing, as far as the publisher can see."""
        return self.publisher.under_way()

    @contextmanager
    def part(self, number: int) -> Iterator[PartWriter]:
        """Write a part: published when the block succeeds, discarded when it raises."""
        planned = self.manifest.plan.part(number)
        tables, rank_of_id = self._tables()
        doing = f"writing part {number}"
        with ExitStack() as outer:
            with translate_os_errors(doing, self.path):
                work = outer.enter_context(self.publisher.work_folder(number))
                stack = outer.enter_context(ExitStack())
                part = PartWriter(work, planned, self.manifest, rank_of_id, stack)
            # Errors of the caller's own code pass through unchanged.
            with translate_os_errors(doing, self.path, WriteFailed):
                yield part
            with translate_os_errors(doing, self.path):
                self._check_complete(part.finish(tables), work)
                if self.publisher.publish_part(number, work):
                    self._written.add(number)

    def adopt(self, number: int, fill: Callable[[Path, dict[str, FileRecord]], PartRecord]) -> bool:
        """Publish a part whose files `fill` puts into a folder, given the tables' digests; false when not the first."""
        tables, _ = self._tables()
        with translate_os_errors(f"writing part {number}", self.path), self.publisher.work_folder(number) as work:
            record = fill(work, tables)
            with new_file(work / layout.PART_RECORD) as file:
                file.write(record.to_json())
            self._check_complete(record, work)
            return self.publisher.publish_part(number, work)

    def _check_complete(self, record: PartRecord, work: Path) -> None:
        """Refuse to publish a folder in which another program added or removed files."""
        lengths = {name: grid.n_chunks for name, grid in part_grids(self.manifest, record).items()}
        expected = layout.part_files(self.manifest, lengths) | {layout.PART_RECORD}
        if changed := expected ^ {path.relative_to(work).as_posix() for path in work.rglob("*") if path.is_file()}:
            raise CacheWriteError(
                f"another program changed the files of part {record.part} while it was written: "
                f"{', '.join(sorted(changed)[:4])} ({work})",
                hint="find out what cleans or fills this folder, then run the same command again",
            )

    def _tables(self) -> tuple[dict[str, FileRecord], npt.NDArray[np.uint32]]:
        if self._table_records is None or self._rank_of_id is None:
            if not self.has_tables:
                raise CacheWriteError(
                    "the tables are not published yet", hint="call publish_tables before the first part"
                )
            store = self.publisher.table_store
            self._table_records = table_records(store, self.manifest)
            ids_by_rank = read_table(store, self.manifest.table("ids_by_rank"), self._table_records)
            self._rank_of_id = np.empty(len(ids_by_rank), np.uint32)
            self._rank_of_id[ids_by_rank] = np.arange(len(ids_by_rank), dtype=np.uint32)
        return self._table_records, self._rank_of_id

    def write_journal(self, number: int, facts: Mapping[str, Any]) -> None:
        """Record once who made a published part and how fast, with the part's digest; no digest covers this file."""
        row = read_part_record(self._store, self.manifest, number, None)[1]
        entry = canonical({**facts, "part": row.part, "part_sha256": row.sha256})
        self.publisher.publish_journal(number, entry)

    def seal(self) -> str:
        """Check every part's files, publish the index when all parts are published, and return the cache_id."""
        committed = self.committed()
        missing = self.manifest.plan.n_parts - len(committed)
        if missing:
            raise CacheIncomplete(
                f"{missing:,} of {self.manifest.plan.n_parts:,} parts are missing", hint="write them, then seal"
            )
        self._check_tokenizer()
        tables, _ = self._tables()
        rows = [self._checked_row(number, tables) for number in committed]
        buffer = io.BytesIO()
        cache_id = write_index(buffer, self.manifest, rows)
        self.publisher.publish_index(buffer.getvalue())
        if read_index(self._store, self.manifest)[1] != cache_id:
            raise CacheDamaged(
                f"{layout.INDEX} lists other parts than the cache holds", hint=f"delete {layout.INDEX} and run again"
            )
        return cache_id

    def _check_tokenizer(self) -> None:
        for name, file in self.manifest.tokenizer.files.items():
            if self._store.size(f"{layout.TOKENIZER}/{name}") != file.bytes:
                raise CacheIncomplete(
                    f"{layout.TOKENIZER}/{name} is missing or does not match the manifest",
                    hint=f"delete {layout.TOKENIZER} if it exists, call publish_tokenizer, then seal",
                )

    def _checked_row(self, number: int, tables: dict[str, FileRecord]) -> IndexRow:
        _, problems = examine_part(self._store, self.manifest, number, None)
        if problems:
            raise CacheDamaged(str(problems[0]), hint=problems[0].do)
        record, row = read_part_record(self._store, self.manifest, number, None)
        if record.tables != tables:
            raise CacheDamaged(
                f"{layout.part_dir(number)} was written with other tables", hint="delete its folder and run again"
            )
        return row
