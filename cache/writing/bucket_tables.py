"""The tables of a cache behind a URL: all from one worker, even if several workers fit tables at the same time.

In: the tables that a worker has fitted. Out: a complete set in the bucket, and a local copy of it. A bucket cannot
publish several files at once: each worker uploads its set under temporary names made from the content, one record that
is never replaced selects a set, and any worker copies that set to the final names.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, final

import numpy.typing as npt

from kdpipe.cache import layout
from kdpipe.cache.durable.scratch import scratch_folder
from kdpipe.cache.parts.tables import write_tables
from kdpipe.cache.stores.protocol import WritableStore
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.schemas.errors import CacheDamaged, CacheWriteError
from kdpipe.schemas.manifest import FileRecord, Manifest
from kdpipe.schemas.records import Record, read_record
from kdpipe.schemas.strict_json import sha256_file, sha256_hex

Result = TypeVar("Result")


class TableSet(Record):
    """The selected set: size and sha256 of each table by its name."""

    tables: dict[str, FileRecord]


@final
class BucketTables:
    """The tables of one bucket; they are downloaded to tables/ in the local folder `path`."""

    def __init__(self, remote: WritableStore, retry_policy: RetryPolicy, manifest: Manifest, path: Path) -> None:
        self._remote, self._retry_policy, self._manifest, self._path = remote, retry_policy, manifest, path
        self._names = {table.name: layout.table_file(table.name) for table in manifest.tables}

    def are_published(self) -> bool:
        """Whether all tables have their final names."""
        return all(self._has(name) for name in self._names.values())

    def publish(self, tables: Mapping[str, npt.NDArray[Any]]) -> None:
        """Upload the tables, unless another worker's set is selected already; then complete that set."""
        with scratch_folder("kdpipe-tables-", "writing tables to upload") as folder:
            write_tables(folder, self._manifest, tables)
            files = {name: folder / f"{name}.bin" for name in self._names}
            own = TableSet(
                tables={
                    name: FileRecord(bytes=file.stat().st_size, sha256=sha256_file(file))
                    for name, file in files.items()
                }
            )
            for name, file in files.items():
                self._retried(partial(self._remote.put, _temporary_name(own, name), file))
        if self._retried(lambda: self._remote.create(layout.TABLE_SET, own.to_json())):
            selected = own
        else:
            selected = self._selected() or own
        if not self.are_published():
            self._publish_selected(selected)
        for name in self._names:
            if own.tables[name] != selected.tables[name]:
                self._retried(partial(self._remote.remove, _temporary_name(own, name)))

    def download(self) -> None:
        """Copy the published tables to this machine."""
        for table in self._manifest.tables:
            name = self._names[table.name]
            data = self._read(name, table.n_bytes)
            (self._path / name).parent.mkdir(exist_ok=True)
            (self._path / name).write_bytes(data)

    def tidy(self) -> None:
        """Remove the temporary names of the selected set, once all of its tables have their final names."""
        selected = self._selected() if self._has(layout.TABLE_SET) else None
        if selected is not None and self.are_published():
            for name in selected.tables:
                if self._has(_temporary_name(selected, name)):
                    self._retried(partial(self._remote.remove, _temporary_name(selected, name)))
            self._retried(partial(self._remote.remove, layout.TABLE_SET))

    def _selected(self) -> TableSet | None:
        """The selected set; None when it was tidied up because all of its tables have their final names."""
        try:
            data = self._read(layout.TABLE_SET, layout.MAX_RECORD_BYTES)
            selected = read_record(TableSet, data, layout.TABLE_SET, damaged=CacheDamaged)
        except CacheDamaged:
            if self.are_published():
                return None
            raise
        if selected.tables.keys() != self._names.keys():
            raise CacheDamaged(
                f"{layout.TABLE_SET} lists {sorted(selected.tables)}, the manifest {sorted(self._names)}",
                hint=f"delete {layout.TABLE_SET} and run again",
            )
        return selected

    def _publish_selected(self, selected: TableSet) -> None:
        """Give each table of the set its final name, and check that no table of another set has one."""
        for table, name in self._names.items():
            if not self._has(name):
                try:
                    data = self._read(_temporary_name(selected, table), selected.tables[table].bytes)
                except CacheDamaged:
                    if self._has(name):  # another worker was first and has tidied up since
                        continue
                    raise
                self._retried(partial(self._remote.create, name, data))
        for table, name in self._names.items():
            data = self._read(name, selected.tables[table].bytes)
            if sha256_hex(data) != selected.tables[table].sha256:
                raise CacheWriteError(
                    f"{name} does not belong to the set in {layout.TABLE_SET}: tables of two workers are mixed",
                    hint=f"if no part exists yet, delete {layout.TABLES}/ and {layout.TABLE_SET} there, and run again",
                )

    def _has(self, name: str) -> bool:
        return self._retried(lambda: self._remote.size(name)) is not None

    def _read(self, name: str, limit: int) -> bytes:
        return self._retried(lambda: self._remote.read(name, limit))

    def _retried(self, work: Callable[[], Result]) -> Result:
        return self._retry_policy.call(work)


def _temporary_name(tables: TableSet, name: str) -> str:
    return layout.table_aside(tables.tables[name].sha256)
