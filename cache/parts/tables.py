"""tables/: arrays that are fitted once for all parts, as plain little-endian numbers.

In: arrays, or a store and the digests that the parts state. Out: files, or checked arrays.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.cache import layout
from kdpipe.cache.durable.files import new_file
from kdpipe.cache.stores.protocol import Store
from kdpipe.schemas.errors import CacheDamaged, CacheWriteError
from kdpipe.schemas.manifest import FileRecord, Manifest, Table
from kdpipe.schemas.strict_json import sha256_hex

_STORED = {"uint32": "<u4", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}


def write_tables(folder: Path, manifest: Manifest, tables: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write every table of the manifest; bfloat16 is given as float32 and rounded to nearest even."""
    if set(tables) != {table.name for table in manifest.tables}:
        raise CacheWriteError(
            f"tables are {sorted(tables)}, the manifest names {sorted(table.name for table in manifest.tables)}"
        )
    for table in manifest.tables:
        values = np.asarray(tables[table.name])
        if values.shape != table.shape:
            raise CacheWriteError(f"table {table.name} has the shape {values.shape}, the manifest has {table.shape}")
        stored = to_bfloat16(values) if table.dtype == "bfloat16" else values.astype(_STORED[table.dtype])
        _check_ranks(table, stored, CacheWriteError)
        with new_file(folder / f"{table.name}.bin") as file:
            file.write(stored.tobytes())


def table_records(store: Store, manifest: Manifest) -> dict[str, FileRecord]:
    """Size and sha256 of every table that is there."""
    records = {}
    for table in manifest.tables:
        data = store.view(layout.table_file(table.name), table.n_bytes)
        records[table.name] = FileRecord(bytes=len(data), sha256=sha256_hex(data))
    return records


def read_table(store: Store, table: Table, records: Mapping[str, FileRecord]) -> npt.NDArray[Any]:
    """A table, if it is the one that the parts were made with; bfloat16 comes as float32."""
    name = layout.table_file(table.name)
    record = records.get(table.name)
    if record is None or record.bytes != table.n_bytes:
        raise CacheDamaged(f"{name}: the parts do not state its size and digest as the manifest does")
    data = store.view(name, table.n_bytes)
    if sha256_hex(data) != record.sha256:
        raise CacheDamaged(f"{name} does not match the digest that the parts state", hint="copy the tables again")
    values = np.frombuffer(data, _STORED[table.dtype]).reshape(table.shape)
    _check_ranks(table, values, CacheDamaged)
    values = from_bfloat16(values) if table.dtype == "bfloat16" else values
    if not np.isfinite(values).all():
        raise CacheDamaged(f"{name} holds numbers that are not finite")
    return values


def _check_ranks(table: Table, values: npt.NDArray[Any], error: type[CacheDamaged] | type[CacheWriteError]) -> None:
    """The frequency ranks must name every id once."""
    if table.name == "ids_by_rank" and not np.array_equal(np.sort(values), np.arange(len(values))):
        raise error(f"{layout.table_file(table.name)} does not name every id of the vocabulary once")


def to_bfloat16(values: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """The upper halves of float32 numbers, rounded to nearest even."""
    bits = np.ascontiguousarray(values, "<f4").view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def from_bfloat16(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Back to float32, exactly."""
    return (values.astype(np.uint32) << 16).view(np.float32)
