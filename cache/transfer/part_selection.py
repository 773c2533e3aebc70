"""A smaller cache, seen before it is there: whole parts of another one, some without what they can do without.

In: a source and a `PartSelection`. Out: a `SourceSnapshot` of its own manifest, records and index; its other files are
those of the first, so that it is copied as any cache is, and nothing that is left out is ever read.
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, final

from kdpipe.cache import layout
from kdpipe.cache.fetch.file import Fetcher
from kdpipe.cache.fetch.source import SourceSnapshot
from kdpipe.cache.parts.index import IndexRow, write_index
from kdpipe.cache.parts.part_files import read_part_record
from kdpipe.cache.reshape.adopt import adopted_record, check_files, with_changes, without_rows, without_text
from kdpipe.cache.reshape.rebuild import Job, made_from, planned
from kdpipe.cache.reshape.sources import check_known
from kdpipe.cache.stores.retries import map_concurrently
from kdpipe.schemas.copy_report import PartSelection
from kdpipe.schemas.errors import CacheDamaged, ConfigError
from kdpipe.schemas.manifest import FileRecord, Manifest, Origin
from kdpipe.schemas.part import PartRecord

# What the parts of a cache can do without, file by file, and what becomes of the manifest then.
LEFT_OUT: Final[Mapping[str, Callable[[Manifest], Manifest]]] = {"hidden": without_rows, "text": without_text}
# Records read at once.
AT_ONCE: Final = 8


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SelectedFiles:
    """The files of the smaller cache; its part n is part `numbers[n]` of `found`, and lies there."""

    found: SourceSnapshot
    manifest: Manifest
    numbers: tuple[int, ...]
    tables: dict[str, FileRecord]

    @property
    def url(self) -> str:
        """Where they lie."""
        return self.found.store.url

    def there(self, name: str) -> str:
        """What a file is called where it lies."""
        inside = layout.within_part(name)
        return name if inside is None else f"{layout.part_dir(self.numbers[_number(inside[0])])}/{inside[1]}"

    def record(self, number: int) -> PartRecord:
        """The record of a part, made of the one that lies there."""
        row = self.found.rows[self.numbers[number]]
        record, _ = read_part_record(self.found.store, self.found.manifest, row.part, row)
        check_files(self.found.manifest, record)
        return adopted_record(record, self.found.manifest, self.manifest, number, self.tables)

    def row(self, number: int) -> IndexRow:
        """What the index says of a part."""
        record = self.record(number)
        return IndexRow.of(record, record.to_json())

    def read(self, name: str, limit: int) -> bytes:
        """See `Files`."""
        inside = layout.within_part(name)
        if inside is not None and inside[1] == layout.PART_RECORD:
            return self.record(_number(inside[0])).to_json()
        return self.found.store.read(self.there(name), limit)

    def read_range(self, name: str, begin: int, end: int, tag: str | None = None) -> bytes:
        """See `Files`."""
        return self.found.store.read_range(self.there(name), begin, end, tag)

    def tag(self, name: str) -> str | None:
        """See `Files`."""
        return self.found.store.tag(self.there(name))


def choose(found: SourceSnapshot, choice: PartSelection, fetcher: Fetcher) -> tuple[SourceSnapshot, Fetcher]:
    """The smaller cache, and who fetches its files."""
    check_known(found.manifest, found.store.url)
    jobs, manifest = _planned(found, choice)
    record, _ = fetcher.believed(lambda: read_part_record(found.store, found.manifest, 0, found.rows[0]))
    if missing := {table.name for table in manifest.tables} - set(record.tables):
        raise CacheDamaged(f"part.json of the first part tells nothing of the table {', '.join(sorted(missing))}")
    files = SelectedFiles(
        found=found,
        manifest=manifest,
        numbers=tuple(job.part for job in jobs),
        tables={table.name: record.tables[table.name] for table in manifest.tables},
    )
    rows = map_concurrently(
        lambda n: fetcher.believed(lambda: files.row(n)), range(len(jobs)), AT_ONCE, fetcher.retry_policy
    )
    buffer = io.BytesIO()
    identity = write_index(buffer, manifest, rows)
    tables = {layout.table_file(name): file for name, file in files.tables.items()}
    shared = {name: file for name, file in found.shared.items() if not name.startswith(f"{layout.TABLES}/")} | tables
    smaller = SourceSnapshot(
        store=found.store,
        manifest=manifest,
        manifest_bytes=manifest.to_json(),
        rows=tuple(rows),
        cache_id=identity,
        index=buffer.getvalue(),
        signature=None,  # of another cache
        shared=shared,
    )
    return smaller, replace(fetcher, store=files, called=files.there)


def _planned(found: SourceSnapshot, choice: PartSelection) -> tuple[list[Job], Manifest]:
    """The parts that are chosen, and what the manifest of a cache of them says."""
    manifest = found.manifest
    splits = [split.name for split in manifest.plan.splits]
    if choice.split is not None and choice.split not in splits:
        raise ConfigError(f"there is no split {choice.split}", hint=f"its splits are {', '.join(splits)}")
    planned_parts = [manifest.plan.part(row.part) for row in found.rows]
    jobs, plan = planned(
        [
            Job(source=0, part=row.part, split=part.split, n_documents=part.n_documents)
            for row, part in zip(found.rows, planned_parts, strict=True)
            if choice.split in (None, part.split) and (choice.parts is None or choice.parts.holds(row.part))
        ],
        manifest.plan,
    )
    for name in choice.without:
        manifest = _without(manifest, name, found)
    assert found.cache_id is not None, "a cache that is not finished is refused"
    origin = Origin(action="copy", caches=(found.cache_id,), note=str(choice))
    made = made_from([manifest], origin, plan)
    # The same choice is the same cache, whichever version of kdpipe copies it.
    return jobs, with_changes(made, kdpipe=found.manifest.kdpipe)


def _without(manifest: Manifest, name: str, found: SourceSnapshot) -> Manifest:
    less = LEFT_OUT[name](manifest) if name in LEFT_OUT else manifest
    if less.sha256 == manifest.sha256:
        can = [one for one, without in LEFT_OUT.items() if without(found.manifest).sha256 != found.manifest.sha256]
        raise ConfigError(
            f"{found.store.url} cannot be copied without {name}",
            hint=f"what can be left out of it: {', '.join(can) or 'nothing'}",
        )
    return less


def _number(folder: str) -> int:
    return int(folder.rpartition("/")[2])
