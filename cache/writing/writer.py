"""`CacheWriter`: a cache under construction, by one worker or many, killed and resumed as often as it takes.

In: a manifest, its tables and tokenizer files, then the parts in any order. Out: a sealed cache. Everything appears
under its name whole and once, and what it leans on is durable before it: the manifest first, then tables, a part when
all of it is on the disk, the index last.
"""

import io
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.cache import layout
from kdpipe.cache.catalog import committed_parts, refuse_foreign_folder, same_manifest
from kdpipe.cache.durable.files import (
    WriteFailed,
    explained,
    is_fresh,
    make_dir,
    new_file,
    publish_dir,
    publish_file,
    sweep,
    sync_dir,
    work_folder,
)
from kdpipe.cache.durable.work_names import is_own
from kdpipe.cache.parts.index import IndexRow, read_index, write_index
from kdpipe.cache.parts.part_files import examine_part, part_grids, read_part_record
from kdpipe.cache.parts.part_writer import PartWriter
from kdpipe.cache.parts.tables import read_table, table_records, write_tables
from kdpipe.cache.parts.tokenizer_files import fingerprint_problem
from kdpipe.cache.stores.addresses import local_path
from kdpipe.cache.stores.local_store import LocalStore
from kdpipe.schemas.errors import CacheDamaged, CacheIncomplete, CacheWriteError, ConfigError
from kdpipe.schemas.manifest import FileRecord, Manifest
from kdpipe.schemas.part import PartRecord
from kdpipe.schemas.strict_json import canonical, sha256_hex

# Writers of other machines are judged by their files; a wrong guess costs one part made twice, which does no harm.
STALE_SECONDS = 900


class CacheWriter:
    """Writes parts into a folder; make one with `create_folder`. A `BucketWriter` sends them on."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self._store = LocalStore(path)
        self._written: set[int] = set()
        self._table_records: dict[str, FileRecord] | None = None
        self._rank_of_id: npt.NDArray[np.uint32] | None = None

    @property
    def has_tables(self) -> bool:
        """Whether the tables are published, by this worker or another."""
        return (self.path / layout.TABLES).is_dir()

    def publish_tables(self, tables: Mapping[str, npt.NDArray[Any]]) -> None:
        """Publish what was fitted, unless another worker was first: then its tables hold."""
        self._publish_folder(layout.TABLES, lambda folder: write_tables(folder, self.manifest, tables))

    def table(self, name: str) -> npt.NDArray[Any]:
        """A table as it was published, by whoever was first."""
        records = table_records(self._store, self.manifest)
        return read_table(self._store, self.manifest.table(name), records)

    def publish_tokenizer(self, files: Mapping[str, bytes]) -> None:
        """Publish the tokenizer's files, which must be those that the manifest names."""
        stated = {name: FileRecord(bytes=len(data), sha256=sha256_hex(data)) for name, data in files.items()}
        named = self.manifest.tokenizer.files
        if stated != named:
            wrong = sorted(name for name in stated.keys() | named.keys() if stated.get(name) != named.get(name))
            raise CacheWriteError(
                f"the tokenizer's files are not those that the manifest names: {', '.join(wrong[:4])}",
                hint="begin another cache, or give the tokenizer that this one was begun with",
            )
        if files and (what := fingerprint_problem(files, self.manifest.tokenizer.fingerprint)) is not None:
            raise CacheWriteError(
                f"{layout.TOKENIZER}: {what}",
                hint="state the fingerprint of kdpipe.cache.parts.tokenizer_content in the manifest",
            )
        if files:
            self._publish_folder(layout.TOKENIZER, lambda folder: _write_files(folder, files))

    def _publish_folder(self, name: str, fill: Callable[[Path], None]) -> None:
        with explained(f"writing {name}", self.path):
            if not (self.path / name).is_dir():
                with work_folder(self.path, name) as work:
                    fill(work)
                    publish_dir(work, self.path / name)

    @property
    def wrote_all(self) -> bool:
        """Whether each part of a cache on this machine was written by this very writer, which took its digest then."""
        return len(self._written) == self.manifest.plan.n_parts

    def committed(self) -> list[int]:
        """The parts that are there."""
        return committed_parts(self._store, self.manifest)

    def record(self, number: int) -> tuple[PartRecord, int]:
        """The record of a part that is there, and the bytes of all its files."""
        record, row = read_part_record(self._store, self.manifest, number, None)
        return record, row.n_bytes

    def missing(self) -> list[int]:
        """The parts that are still to be made; those that somebody else seems to be at come last."""
        there = set(self.committed())
        missing = [number for number in range(self.manifest.plan.n_parts) if number not in there]
        taken = {name.partition("~")[0] for name in sweep(self.path)}
        return sorted(missing, key=lambda number: (f"{number:05d}" in taken, number))

    def under_way(self) -> set[int]:
        """The parts that another worker seems to be at: its folder has changed in the last quarter of an hour."""
        names = [name for name in sweep(self.path) if not is_own(name)]
        busy = {name.partition("~")[0] for name in names if is_fresh(self.path / layout.WORK / name, STALE_SECONDS)}
        return {int(what) for what in busy if layout.PART_NAME.match(what)}

    @contextmanager
    def part(self, number: int) -> Iterator[PartWriter]:
        """Write a part: it is committed when the block ends well, and leaves nothing when it does not."""
        planned = self.manifest.plan.part(number)
        tables, rank_of_id = self._tables()
        doing = f"writing part {number}"
        with ExitStack() as outer:
            with explained(doing, self.path):
                work = outer.enter_context(work_folder(self.path, f"{number:05d}"))
                stack = outer.enter_context(ExitStack())
                part = PartWriter(work, planned, self.manifest, rank_of_id, stack)
            # What fails in the caller's own code keeps its own words.
            with explained(doing, self.path, WriteFailed):
                yield part
            with explained(doing, self.path):
                self._check_complete(part.finish(tables), work)
                if publish_dir(work, self.path / layout.part_dir(number)):
                    self._written.add(number)

    def adopt(self, number: int, fill: Callable[[Path, dict[str, FileRecord]], PartRecord]) -> bool:
        """Commit a part whose files `fill` puts into a folder, given the tables' digests; whether nobody was first."""
        tables, _ = self._tables()
        with explained(f"writing part {number}", self.path), work_folder(self.path, f"{number:05d}") as work:
            record = fill(work, tables)
            with new_file(work / layout.PART_RECORD) as file:
                file.write(record.to_json())
            self._check_complete(record, work)
            return publish_dir(work, self.path / layout.part_dir(number))

    def _check_complete(self, record: PartRecord, work: Path) -> None:
        """A folder that something else has reached into is never given its name."""
        lengths = {name: grid.n_chunks for name, grid in part_grids(self.manifest, record).items()}
        due = layout.part_files(self.manifest, lengths) | {layout.PART_RECORD}
        if found := due ^ {path.relative_to(work).as_posix() for path in work.rglob("*") if path.is_file()}:
            raise CacheWriteError(
                f"something else changed the files of part {record.part} while it was written: "
                f"{', '.join(sorted(found)[:4])} ({work})",
                hint="find out what cleans or fills this folder, then run the same command again",
            )

    def _tables(self) -> tuple[dict[str, FileRecord], npt.NDArray[np.uint32]]:
        if self._table_records is None or self._rank_of_id is None:
            if not self.has_tables:
                raise CacheWriteError(
                    "the tables are not published yet", hint="call publish_tables before the first part"
                )
            self._table_records = table_records(self._store, self.manifest)
            ids_by_rank = read_table(self._store, self.manifest.table("ids_by_rank"), self._table_records)
            self._rank_of_id = np.empty(len(ids_by_rank), np.uint32)
            self._rank_of_id[ids_by_rank] = np.arange(len(ids_by_rank), dtype=np.uint32)
        return self._table_records, self._rank_of_id

    def write_journal(self, number: int, facts: Mapping[str, Any]) -> None:
        """Note who made a committed part and how fast: outside everything that is digested, and only once."""
        row = read_part_record(self._store, self.manifest, number, None)[1]
        with explained("writing the journal", self.path):
            publish_file(self.path, self.path / layout.journal_file(number), journal_entry(row, facts))

    def seal(self) -> str:
        """Check every part's files, write the index when all parts are there, and return the cache_id."""
        there = self.committed()
        missing = self.manifest.plan.n_parts - len(there)
        if missing:
            raise CacheIncomplete(
                f"{missing:,} of {self.manifest.plan.n_parts:,} parts are missing", hint="write them, then seal"
            )
        self._check_tokenizer()
        tables, _ = self._tables()
        rows = [self._examined(number, tables) for number in there]
        buffer = io.BytesIO()
        identity = write_index(buffer, self.manifest, rows)
        with explained(f"writing {layout.INDEX}", self.path):
            if not (self.path / layout.INDEX).exists():
                # Whoever committed the parts may have died before their names were durable.
                sync_dir(self.path / layout.PARTS)
                sync_dir(self.path)
                publish_file(self.path, self.path / layout.INDEX, buffer.getvalue())
            self._sweep()
        stated = read_index(self._store, self.manifest)[1]
        if stated != identity:
            raise CacheDamaged(
                f"{layout.INDEX} names other parts than there are", hint=f"delete {layout.INDEX} and run again"
            )
        return identity

    def _check_tokenizer(self) -> None:
        for name, file in self.manifest.tokenizer.files.items():
            if self._store.size(f"{layout.TOKENIZER}/{name}") != file.bytes:
                raise CacheIncomplete(
                    f"{layout.TOKENIZER}/{name} is not there as the manifest names it",
                    hint=f"delete {layout.TOKENIZER} if it is there, call publish_tokenizer, then seal",
                )

    def _examined(self, number: int, tables: dict[str, FileRecord]) -> IndexRow:
        _, problems = examine_part(self._store, self.manifest, number, None)
        if problems:
            raise CacheDamaged(str(problems[0]), hint=problems[0].do)
        record, row = read_part_record(self._store, self.manifest, number, None)
        if record.tables != tables:
            raise CacheDamaged(
                f"{layout.part_dir(number)} was made with other tables", hint="delete its folder and run again"
            )
        return row

    def _sweep(self) -> None:
        """Remove what dead workers of this machine left, and the work folder when nothing else is in it."""
        sweep(self.path)
        try:
            os.rmdir(self.path / layout.WORK)
        except OSError:
            return
        sync_dir(self.path)


def create_folder(folder: str | os.PathLike[str], manifest: Manifest) -> CacheWriter:
    """Begin a cache, or go on with the one of the same manifest; another manifest in the folder is refused."""
    named = local_path(os.fspath(folder))
    if not named:
        raise ConfigError("the path of the new cache is empty", hint="name a new or empty folder")
    path = Path(named)
    with explained("creating the cache", path):
        if not path.is_dir():
            make_dir(path)
        if not (path / layout.MANIFEST).exists():
            refuse_foreign_folder(path)
            publish_file(path, path / layout.MANIFEST, manifest.to_json())
        else:
            # Whoever put it there may have died before its name was durable, and all else leans on it.
            sync_dir(path)
    found = same_manifest(LocalStore(path), manifest, str(path))
    sweep(path)
    return CacheWriter(path, found)


def journal_entry(row: IndexRow, facts: Mapping[str, Any]) -> bytes:
    """A journal file: the part and the digest of its part.json, beside whatever is said of it."""
    return canonical({**facts, "part": row.part, "part_sha256": row.sha256})


def _write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        make_dir((folder / name).parent)
        with new_file(folder / name) as file:
            file.write(data)
