"""A smaller cache made of whole parts of another one, optionally without hidden states or text.

In: a source and a `PartSelection`. Out: a `SourceSnapshot` with a manifest, records and index of its own; all other
files are those of the source, so that it is copied like any cache, and files that are left out are never read.
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

# Content that can be left out of parts by leaving out files, and what that does to the manifest.
LEFT_OUT: Final[Mapping[str, Callable[[Manifest], Manifest]]] = {"hidden": without_rows, "text": without_text}
# Records read at once.
AT_ONCE: Final = 8


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SelectedFiles:
    """The files of the smaller cache: its part n is part `numbers[n]` of `source`."""

    source: SourceSnapshot
    manifest: Manifest
    numbers: tuple[int, ...]
    tables: dict[str, FileRecord]

    @property
    def url(self) -> str:
        return self.source.store.url

    def source_name(self, name: str) -> str:
        """The name of a file in the source."""
        inside = layout.within_part(name)
        return name if inside is None else f"{layout.part_dir(self.numbers[_number(inside[0])])}/{inside[1]}"

    def record(self, number: int) -> PartRecord:
        """The record of a part, made from the one in the source."""
        row = self.source.rows[self.numbers[number]]
        record, _ = read_part_record(self.source.store, self.source.manifest, row.part, row)
        check_files(self.source.manifest, record)
        return adopted_record(record, self.source.manifest, self.manifest, number, self.tables)

    def row(self, number: int) -> IndexRow:
        record = self.record(number)
        return IndexRow.of(record, record.to_json())

    def read(self, name: str, limit: int) -> bytes:
        inside = layout.within_part(name)
        if inside is not None and inside[1] == layout.PART_RECORD:
            return self.record(_number(inside[0])).to_json()
        return self.source.store.read(self.source_name(name), limit)

    def read_range(self, name: str, begin: int, end: int, tag: str | None = None) -> bytes:
        return self.source.store.read_range(self.source_name(name), begin, end, tag)

    def tag(self, name: str) -> str | None:
        return self.source.store.tag(self.source_name(name))


def select_parts(source: SourceSnapshot, selection: PartSelection, fetcher: Fetcher) -> tuple[SourceSnapshot, Fetcher]:
    """The smaller cache, and the fetcher of its files."""
    check_known(source.manifest, source.store.url)
    jobs, manifest = _planned(source, selection)
    record, _ = fetcher.read_checked(lambda: read_part_record(source.store, source.manifest, 0, source.rows[0]))
    if missing := {table.name for table in manifest.tables} - set(record.tables):
        raise CacheDamaged(f"part.json of the first part does not list the table {', '.join(sorted(missing))}")
    files = SelectedFiles(
        source=source,
        manifest=manifest,
        numbers=tuple(job.part for job in jobs),
        tables={table.name: record.tables[table.name] for table in manifest.tables},
    )
    rows = map_concurrently(
        lambda n: fetcher.read_checked(lambda: files.row(n)), range(len(jobs)), AT_ONCE, fetcher.retry_policy
    )
    buffer = io.BytesIO()
    identity = write_index(buffer, manifest, rows)
    tables = {layout.table_file(name): file for name, file in files.tables.items()}
    shared = {name: file for name, file in source.shared.items() if not name.startswith(f"{layout.TABLES}/")} | tables
    smaller = SourceSnapshot(
        store=source.store,
        manifest=manifest,
        manifest_bytes=manifest.to_json(),
        rows=tuple(rows),
        cache_id=identity,
        index=buffer.getvalue(),
        signature=None,  # it signs the source
        shared=shared,
    )
    return smaller, replace(fetcher, store=files, name_in_source=files.source_name)


def _planned(source: SourceSnapshot, selection: PartSelection) -> tuple[list[Job], Manifest]:
    """The selected parts, and the manifest of a cache made of them."""
    manifest = source.manifest
    splits = [split.name for split in manifest.plan.splits]
    if selection.split is not None and selection.split not in splits:
        raise ConfigError(
            f"no split {selection.split} in {source.store.url}", hint=f"its splits are {', '.join(splits)}"
        )
    planned_parts = [manifest.plan.part(row.part) for row in source.rows]
    jobs, plan = planned(
        [
            Job(source=0, part=row.part, split=part.split, n_documents=part.n_documents)
            for row, part in zip(source.rows, planned_parts, strict=True)
            if selection.split in (None, part.split) and (selection.parts is None or selection.parts.holds(row.part))
        ],
        manifest.plan,
    )
    for name in selection.without:
        manifest = _without(manifest, name, source)
    assert source.cache_id is not None, "unfinished caches are refused"
    origin = Origin(action="copy", caches=(source.cache_id,), note=str(selection))
    derived = made_from([manifest], origin, plan)
    # The same selection gives the same cache, whichever version of kdpipe copies it.
    return jobs, with_changes(derived, kdpipe=source.manifest.kdpipe)


def _without(manifest: Manifest, name: str, source: SourceSnapshot) -> Manifest:
    less = LEFT_OUT[name](manifest) if name in LEFT_OUT else manifest
    if less.sha256 == manifest.sha256:
        original = source.manifest
        optional = [key for key, without in LEFT_OUT.items() if without(original).sha256 != original.sha256]
        raise ConfigError(
            f"{source.store.url} cannot be copied without {name}",
            hint=f"content that can be left out of it: {', '.join(optional) or 'none'}",
        )
    return less


def _number(folder: str) -> int:
    return int(folder.rpartition("/")[2])
