"""Arrow: mapped IPC files, Parquet as index and as data, zstd streams. The only module that imports pyarrow.

Arrow reads no byte of a user's Parquet file before `parquet_footer.py` and `parquet_bounds.py` have checked it.
"""

import os
import struct
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby
from operator import itemgetter
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from kdpipe.cache.format.number_lists import depth, joined, rows_of_lists, view
from kdpipe.cache.parts.arrow_messages import is_compressed, next_message
from kdpipe.cache.parts.parquet_bounds import (
    A_BYTE,
    Pages,
    check_dictionaries,
    check_pages,
    check_values,
    named_bytes,
    read_pages,
    row_costs,
)
from kdpipe.cache.parts.parquet_footer import BYTE_ARRAY, Footer, read_footer
from kdpipe.schemas.errors import CacheDamaged, ConfigError, first_line

MAGIC = b"ARROW1"
PARQUET_BATCH = 1024
# Rows in memory at a time, in bytes; and how much all rows of a file may take in turn, and more for each of its bytes.
BATCH_BYTES = 1 << 26
UNFOLDED_BYTES, UNFOLDED_PER_BYTE = 1 << 27, 1 << 8
NOT_UTF8 = "it is not valid UTF-8"
CODECS: dict[int, Any] = {1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}
# A date before the year 1, an unknown time zone, a type that is not converted.
NO_VALUE = (ValueError, OverflowError, LookupError, NotImplementedError)
_TYPES = {
    "uint32": pa.uint32(),
    "uint64": pa.uint64(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "string": pa.string(),
    "binary": pa.binary(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A column: its name, the type of its values, whether a row has a list of them, and whether they may be missing."""

    name: str
    type: str
    width: int = 0
    listed: bool = False
    nullable: bool = False

    def to_arrow(self) -> "pa.Field[Any]":
        """The same for pyarrow."""
        kind: Any = pa.binary(self.width) if self.type == "fixed" else _TYPES[self.type]
        if self.listed:
            kind = pa.list_(pa.field("item", kind, nullable=self.nullable))
        return pa.field(self.name, kind, nullable=self.nullable and not self.listed)


def write_ipc(file: Any, fields: Sequence[Field], columns: Mapping[str, Any], offsets: npt.NDArray[np.int32]) -> None:
    """Write one uncompressed record batch; listed columns are flat, with `offsets` of each row's values."""
    schema = pa.schema([field.to_arrow() for field in fields])
    arrays = [_to_arrow(field, columns[field.name], offsets) for field in fields]
    batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
    with pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(batch)


def _to_arrow(field: Field, values: Any, offsets: npt.NDArray[np.int32]) -> Any:
    arrow = field.to_arrow().type
    kind = arrow.value_type if field.listed else arrow
    if field.type == "fixed":
        rows = np.ascontiguousarray(values, np.uint8).reshape(-1, field.width)
        array = pa.FixedSizeBinaryArray.from_buffers(kind, len(rows), [None, pa.py_buffer(rows.data)])
    else:
        array = pa.array(values, type=kind)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), array, type=arrow) if field.listed else array


class IpcTable:
    """One record batch of a mapped file, with its schema, its compression and every offset checked."""

    def __init__(self, data: memoryview, fields: Sequence[Field], n_rows: int, what: str) -> None:
        self._what = what
        try:
            self._batch = _read_batch(data, pa.schema([field.to_arrow() for field in fields]))
            self._batch.validate(full=True)
        except (pa.ArrowException, OSError, ValueError, struct.error) as error:
            raise CacheDamaged(f"{what} is not the Arrow file it should be: {first_line(error)}") from None
        if self._batch.num_rows != n_rows:
            raise CacheDamaged(f"{what} has {self._batch.num_rows:,} rows, part.json has {n_rows:,}")
        for field in fields:
            values = self._values(field.name)
            lists = self._batch.column(field.name).null_count if field.listed else 0
            if lists or (values.null_count and not field.nullable):
                raise CacheDamaged(f"{what}: the column {field.name} has missing values")

    def numbers(self, name: str) -> npt.NDArray[Any]:
        """The values of a column of numbers, flat."""
        values = self._values(name)
        return view(values, values.type.to_pandas_dtype())

    def fixed(self, name: str, width: int) -> npt.NDArray[np.uint8]:
        """The values of a column of byte strings of one width, as rows."""
        values = self._values(name)
        data = np.frombuffer(values.buffers()[1] or b"", np.uint8)
        return data[values.offset * width : (values.offset + len(values)) * width].reshape(-1, width)

    def offsets(self, name: str) -> npt.NDArray[np.int64]:
        """Where the list of each row begins in the flat values, and the end."""
        offsets = view(self._batch.column(name).offsets, np.int32).astype(np.int64)
        return np.subtract(offsets, offsets[:1])

    def values(self, name: str, start: int, stop: int) -> list[Any]:
        """Some values of a column as Python objects, counted flat."""
        return list(self._values(name).slice(start, stop - start).to_pylist())

    def _values(self, name: str) -> Any:
        column = self._batch.column(name)
        return column.flatten() if isinstance(column, pa.ListArray) else column


def _read_batch(data: memoryview, schema: pa.Schema) -> Any:
    if bytes(data[:6]) != MAGIC or bytes(data[-6:]) != MAGIC:
        raise ValueError("the magic bytes are missing")
    reader = pa.ipc.MessageReader.open_stream(pa.BufferReader(pa.py_buffer(data[8:])))
    first = next_message(reader)
    if first is None or first.type != "schema":
        raise ValueError("it does not begin with a schema")
    stated = pa.ipc.read_schema(first)
    if not stated.equals(schema, check_metadata=True):
        raise ValueError("its columns are not those of its cache")
    message = next_message(reader)
    if message is None or message.type != "record batch" or is_compressed(message.metadata.to_pybytes()):
        raise ValueError("it holds something else than one uncompressed record batch")
    if next_message(reader) is not None:
        raise ValueError("it holds more than one record batch")
    return pa.ipc.read_record_batch(message, schema)


def write_parquet(
    file: BinaryIO, fields: Sequence[Field], columns: Mapping[str, Any], notes: Mapping[str, str]
) -> None:
    """Write one row group, plain and uncompressed, with a checksum a page."""
    schema = pa.schema([field.to_arrow() for field in fields])
    table = pa.table(
        {field.name: pa.array(columns[field.name], field.to_arrow().type) for field in fields}, schema=schema
    )
    plain: dict[str, Any] = {
        "compression": "NONE",
        "use_dictionary": False,
        "write_statistics": False,
        "store_schema": False,
    }
    with pq.ParquetWriter(file, schema, write_page_checksum=True, **plain) as writer:
        writer.write_table(table, row_group_size=max(1, table.num_rows))
        writer.add_key_value_metadata(dict(notes))


def compress(data: bytes) -> bytes:
    """A zstd frame."""
    return bytes(pa.Codec("zstd", compression_level=9).compress(data, asbytes=True))


def decompress(frame: bytes, n_bytes: int, what: str) -> bytes:
    """A zstd frame's bytes, of which there must be exactly as many as the caller has made room for."""
    try:
        return bytes(pa.Codec("zstd").decompress(frame, n_bytes, asbytes=True))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CacheDamaged(f"{what}: a text does not decompress: {first_line(error)}") from None


def _page(codec: int, stored: bytes, n_bytes: int) -> bytes | None:
    """A page's bytes; None of a codec whose frames are not simple."""
    name = CODECS.get(codec)
    return bytes(pa.Codec(name).decompress(stored, n_bytes, asbytes=True)) if name else stored if not codec else None


@lru_cache(maxsize=8)
def _footer(path: str, n_bytes: int, _mtime_ns: int) -> Footer:
    """The footer of a file in this state: reading one of megabytes takes seconds."""
    with open(path, "rb") as file:
        return read_footer(file, n_bytes)


class _ParquetData:
    """A person's Parquet file: every page of a row group is known by size before one of them is unfolded."""

    def __init__(self, path: str) -> None:
        try:
            self._footer = _footer(path, os.stat(path).st_size, os.stat(path).st_mtime_ns)
            self._file = pq.ParquetFile(path)
            self._schema = self._file.schema_arrow
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._unreadable(path, error, hint="is it whole? fetch or write it again") from None
        self._path, self.names = path, list(self._schema.names)
        self._columns, self._n_values = self.names, 0
        self._texts: list[str] = []
        self._ends = np.cumsum([group.n_rows for group in self._footer.groups], dtype=np.int64)

    @staticmethod
    def _unreadable(path: str, error: Exception, hint: str | None = None) -> ConfigError:
        return ConfigError(f"{path} cannot be read as Parquet: {first_line(error)}", hint=hint)

    def _pages(self, number: int) -> list[Pages]:
        """The pages of the columns that are read, which must not unfold too far."""
        pages, self._texts, room = [], [], BATCH_BYTES
        try:
            with open(self._path, "rb") as file:
                for chunk, leaf in zip(self._footer.groups[number].chunks, self._footer.leaves, strict=True):
                    if leaf.top in self._columns:
                        pages.append(read_pages(file, chunk, leaf))
                        if leaf.type == BYTE_ARRAY and leaf.repeated:
                            n_bytes = named_bytes(file, pages[-1], partial(_page, chunk.codec))
                            self._texts += [leaf.path] if n_bytes > room else []
                            room -= n_bytes if n_bytes <= room else 0
            check_pages(pages)
            self._n_values += sum(page.n_values for page in pages)
            check_values(self._n_values, os.path.getsize(self._path))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{self._path} cannot be read: in row group {number + 1:,} {error}",
                hint="is it what it should be? write it again, with smaller row groups and pages",
            ) from None
        return pages

    def _read(self, group: int, rows: int) -> Iterator[Any]:
        """Batches; texts that lists name often stay in a dictionary, to which the library slowly adds all others."""
        size = max(1, min(PARQUET_BATCH, rows))
        try:
            options: Any = {"buffer_size": 1 << 20, "read_dictionary": self._texts}
            file = pq.ParquetFile(self._path, metadata=self._file.metadata, **options)
            for batch in file.iter_batches(size, row_groups=[group], columns=self._columns, use_threads=False):
                check_dictionaries(batch.columns)
                yield batch
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._unreadable(self._path, error) from None


class ParquetRows(_ParquetData):
    """Its rows in order or by number, at most a thousand in memory; a malformed row is a string with the reason."""

    def __init__(self, path: str, max_row_bytes: int, columns: Collection[str] | None = None) -> None:
        super().__init__(path)
        self._columns = [name for name in self.names if columns is None or name in columns]
        self._most, self._unfolded = A_BYTE * max_row_bytes, 0

    def rows(self) -> Iterator[dict[str, Any] | str]:
        """All rows, in order."""
        for group in range(len(self._ends)):
            for batch in self._batches(group):
                yield from self._to_rows(batch)

    def rows_at(self, numbers: Sequence[int]) -> Iterator[dict[str, Any] | str]:
        """The rows of ascending numbers; rows in between are decompressed and skipped."""
        groups = np.searchsorted(self._ends, numbers, "right").tolist()
        for group, members in groupby(zip(groups, numbers, strict=True), key=itemgetter(0)):
            wanted = deque(number for _, number in members)
            end = int(self._ends[group - 1]) if group else 0
            for batch in self._batches(group):
                start, end = end, end + batch.num_rows
                here = []
                while wanted and wanted[0] < end:
                    here.append(wanted.popleft() - start)
                if here:
                    yield from self._to_rows(batch.take(pa.array(here, pa.int64())))
                if not wanted:
                    break

    def _batches(self, group: int) -> Iterator[Any]:
        """Batches of so few rows that a page for each of them has room, or a dictionary, which may be one text."""
        n_open = sum(page.dictionary_bytes + page.data_bytes for page in self._pages(group))
        return self._read(group, BATCH_BYTES // max(1, n_open))

    def _to_rows(self, batch: Any) -> Iterator[dict[str, Any] | str]:
        costs = row_costs(batch.columns, batch.num_rows)
        self._unfolded += int(np.minimum(costs, self._most).sum())
        n_bytes = os.path.getsize(self._path)
        if self._unfolded > UNFOLDED_BYTES + UNFOLDED_PER_BYTE * n_bytes:
            raise ConfigError(
                f"{self._path} has {n_bytes:,} bytes and its rows unfold to {self._unfolded // A_BYTE:,} or more",
                hint="is it what it should be? write it again without rows that repeat",
            )
        if costs.max(initial=0) <= self._most and costs.sum() <= A_BYTE * BATCH_BYTES:
            try:
                yield from batch.to_pylist()
                return
            except NO_VALUE:
                pass
        for i, cost in enumerate(costs.tolist()):
            yield self._to_row(batch.slice(i, 1), cost)

    def _to_row(self, batch: Any, cost: int) -> dict[str, Any] | str:
        if cost > self._most:
            return f"it has about {cost // A_BYTE:,} bytes, at most {self._most // A_BYTE:,} are allowed"
        try:
            row: dict[str, Any] = batch.to_pylist()[0]
        except UnicodeDecodeError:
            return NOT_UTF8
        except NO_VALUE as error:
            return f"it has a value that Python has no type for: {first_line(error)}"
        return row


class ParquetLists(_ParquetData):
    """Rows of lists of numbers, or of lists of lists, as numpy arrays."""

    def __init__(self, path: str, columns: Collection[str]) -> None:
        super().__init__(path)
        self._columns = [name for name in self.names if name in columns]
        for name in self._columns:
            kind = self._schema.field(name).type
            if not depth(kind):
                raise ConfigError(f"{path}: the column {name} is of type {kind}, lists of numbers were expected")

    def rows_at(self, numbers: Sequence[int] | None = None) -> Iterator[dict[str, Any]]:
        """The rows of ascending numbers, or all."""
        all_rows = range(int(self._ends[-1]) if len(self._ends) else 0)
        wanted = iter(all_rows if numbers is None else numbers)
        number = next(wanted, None)
        for group in range(len(self._ends)):
            end = int(self._ends[group - 1]) if group else 0
            if number is not None and number < self._ends[group]:
                for batch in self._batches(group):
                    start, end = end, end + batch.num_rows
                    columns = {name: rows_of_lists(batch.column(name)) for name in self._columns}
                    while number is not None and number < end:
                        yield {name: take(number - start) for name, take in columns.items()}
                        number = next(wanted, None)

    def _batches(self, group: int) -> Iterator[Any]:
        n_values = sum(page.n_values for page in self._pages(group))
        return self._read(group, self._footer.groups[group].n_rows * BATCH_BYTES // max(1, 8 * n_values))


@contextmanager
def lists_writer(
    file: BinaryIO, types: Mapping[str, tuple[str, int]], notes: Mapping[str, str]
) -> Iterator[Callable[[Sequence[Mapping[str, Any]]], None]]:
    """Write a Parquet file of lists of numbers for other programs: a function that writes rows as one row group.

    `types` has a numpy type and a depth of lists for each column; rows have arrays, or `NumberLists` where lists lie
    in lists.
    """
    fields = []
    for name, (kind, deep) in types.items():
        nested: Any = pa.from_numpy_dtype(np.dtype(kind))
        for _ in range(deep):
            nested = pa.list_(nested)
        fields.append(pa.field(name, nested))
    schema = pa.schema(fields, metadata={key.encode(): value.encode() for key, value in notes.items()})

    def column(name: str, rows: Sequence[Mapping[str, Any]]) -> Any:
        values, levels = joined([row[name] for row in rows])
        array: Any = pa.array(values.astype(types[name][0]))
        for offsets in levels:
            array = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), array)
        return array

    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        yield lambda rows: writer.write_batch(
            pa.RecordBatch.from_arrays([column(n, rows) for n in types], schema=schema)
        )


def parquet_notes(path: str) -> tuple[dict[str, str], int]:
    """The metadata of a Parquet file, and its number of rows; None if it is not one."""
    try:
        _footer(path, os.stat(path).st_size, os.stat(path).st_mtime_ns)
        metadata = pq.read_metadata(path)
    except (pa.ArrowException, OSError, ValueError):
        return {}, 0
    stored = metadata.metadata or {}
    notes = {key.decode("utf-8", "replace"): value.decode("utf-8", "replace") for key, value in stored.items()}
    return notes, int(metadata.num_rows)


def open_zstd(path: str) -> Any:
    """The decompressed contents of a .zst file as a stream; OSError where it is damaged or truncated."""
    return pa.CompressedInputStream(pa.OSFile(path, "rb"), "zstd")
