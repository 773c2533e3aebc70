"""The tables of a cache behind a URL: all of them from one worker, whoever else fits its own meanwhile.

In: what a worker has fitted. Out: tables that are there whole, and a copy of them here. Several files do not appear at
once in a bucket: each worker puts its set aside under names of their content, one record that is never replaced picks
the set that counts, and whoever comes by gives its tables their names.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, final

import numpy.typing as npt

from kdpipe.cache import layout
from kdpipe.cache.durable.scratch import scratch_folder
from kdpipe.cache.parts.tables import write_tables
from kdpipe.cache.stores.fsspec_store import RemoteFolder
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.schemas.errors import CacheDamaged, CacheWriteError
from kdpipe.schemas.manifest import FileRecord, Manifest
from kdpipe.schemas.records import Record, read_record
from kdpipe.schemas.strict_json import sha256_file, sha256_hex

if TYPE_CHECKING:
    from kdpipe.cache.stores.hub_store import HubFolder

Found = TypeVar("Found")


class TableSet(Record):
    """The set that counts: size and sha256 of each table by its name."""

    tables: dict[str, FileRecord]


@final
class BucketTables:
    """The tables of one place; `path` is a folder here whose tables/ is a copy of them."""

    def __init__(
        self, place: "RemoteFolder | HubFolder", retry_policy: RetryPolicy, manifest: Manifest, path: Path
    ) -> None:
        self._place, self._retry_policy, self._manifest, self._path = place, retry_policy, manifest, path
        self._names = {table.name: layout.table_file(table.name) for table in manifest.tables}

    def are_there(self) -> bool:
        """Whether all of them have their names."""
        return all(self._has(name) for name in self._names.values())

    def publish(self, tables: Mapping[str, npt.NDArray[Any]]) -> None:
        """Send what was fitted, unless the set of another worker counts: then see that all of it has its names."""
        with scratch_folder("kdpipe-tables-", "writing tables on their way") as folder:
            write_tables(folder, self._manifest, tables)
            files = {name: folder / f"{name}.bin" for name in self._names}
            mine = TableSet(
                tables={
                    name: FileRecord(bytes=file.stat().st_size, sha256=sha256_file(file))
                    for name, file in files.items()
                }
            )
            for name, file in files.items():
                self._through(partial(self._place.put, _aside(mine, name), file))
        if self._through(lambda: self._place.create(layout.TABLE_SET, mine.to_json())):
            chosen = mine
        else:
            chosen = self._chosen() or mine
        if not self.are_there():
            self._name_all(chosen)
        for name in self._names:
            if mine.tables[name] != chosen.tables[name]:
                self._through(partial(self._place.remove, _aside(mine, name)))

    def adopt(self) -> None:
        """Have the tables here that are there, whoever made them."""
        for table in self._manifest.tables:
            name = self._names[table.name]
            data = self._read(name, table.n_bytes)
            (self._path / name).parent.mkdir(exist_ok=True)
            (self._path / name).write_bytes(data)

    def tidy(self) -> None:
        """Remove the set that was put aside, once all of it has its names; nobody needs it any more."""
        chosen = self._chosen() if self._has(layout.TABLE_SET) else None
        if chosen is not None and self.are_there():
            for name in chosen.tables:
                if self._has(_aside(chosen, name)):
                    self._through(partial(self._place.remove, _aside(chosen, name)))
            self._through(partial(self._place.remove, layout.TABLE_SET))

    def _chosen(self) -> TableSet | None:
        """The set that counts; None when it was tidied away, as all of it has its names."""
        try:
            found = read_record(TableSet, self._read(layout.TABLE_SET, layout.MAX_RECORD_BYTES), layout.TABLE_SET)
        except CacheDamaged:
            if self.are_there():
                return None
            raise
        if found.tables.keys() != self._names.keys():
            raise CacheDamaged(
                f"{layout.TABLE_SET} names {sorted(found.tables)}, the manifest {sorted(self._names)}",
                hint=f"delete {layout.TABLE_SET} and run again",
            )
        return found

    def _name_all(self, chosen: TableSet) -> None:
        """Give each table of the set its name, and see that none of another set has one."""
        for table, name in self._names.items():
            if not self._has(name):
                try:
                    data = self._read(_aside(chosen, table), chosen.tables[table].bytes)
                except CacheDamaged:
                    if self._has(name):  # another worker was here first, and has tidied up since
                        continue
                    raise
                self._through(partial(self._place.create, name, data))
        for table, name in self._names.items():
            data = self._read(name, chosen.tables[table].bytes)
            if sha256_hex(data) != chosen.tables[table].sha256:
                raise CacheWriteError(
                    f"{name} is not of the set that {layout.TABLE_SET} names: tables of two workers are mixed",
                    hint=f"delete {layout.TABLES}/ and {layout.TABLE_SET} there if no part is there yet, and run again",
                )

    def _has(self, name: str) -> bool:
        return self._through(lambda: self._place.size(name)) is not None

    def _read(self, name: str, limit: int) -> bytes:
        return self._through(lambda: self._place.read(name, limit))

    def _through(self, work: Callable[[], Found]) -> Found:
        return self._retry_policy.through(work)


def _aside(tables: TableSet, name: str) -> str:
    return layout.table_aside(tables.tables[name].sha256)
