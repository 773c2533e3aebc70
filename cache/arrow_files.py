"""Arrow: uncompressed IPC files that are mapped, Parquet as index and as data. The only module that imports pyarrow.

In: numpy arrays and the columns that a file must have. Out: the same, after everything that Arrow leaves to its users
is checked; and the rows of a person's Parquet file. Before it: `number_lists.py`. After it:
`sequences.py`, `text.py` and `index.py` say which columns these are; `pipeline/data/row_files.py`, `pipeline/foreign`.
"""

import struct
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from kdpipe.cache.number_lists import depth, joined, rows_of_lists
from kdpipe.schemas.errors import CacheDamaged, ConfigError

MAGIC = b"ARROW1"
PARQUET_BATCH = 1024
# Rows of lists of numbers: bytes in memory at a time, and how far a small file may unfold.
LISTS_BATCH_BYTES = 1 << 26
MOST_VALUES, MOST_VALUES_A_BYTE = 1 << 24, 64
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
    """Write one uncompressed record batch; listed columns are given flat, `offsets` says which values are whose."""
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
            raise CacheDamaged(f"{what} is not the Arrow file it should be: {_first_line(error)}") from None
        if self._batch.num_rows != n_rows:
            raise CacheDamaged(f"{what} has {self._batch.num_rows:,} rows, its part says {n_rows:,}")
        for field in fields:
            values = self._values(field.name)
            lists = self._batch.column(field.name).null_count if field.listed else 0
            if lists or (values.null_count and not field.nullable):
                raise CacheDamaged(f"{what}: the column {field.name} has missing values")

    def numbers(self, name: str) -> npt.NDArray[Any]:
        """The values of a column of numbers, flat."""
        values = self._values(name)
        return _numbers(values, values.type.to_pandas_dtype())

    def fixed(self, name: str, width: int) -> npt.NDArray[np.uint8]:
        """The values of a column of byte strings of one width, as rows."""
        values = self._values(name)
        data = np.frombuffer(values.buffers()[1] or b"", np.uint8)
        return data[values.offset * width : (values.offset + len(values)) * width].reshape(-1, width)

    def offsets(self, name: str) -> npt.NDArray[np.int64]:
        """Where the list of each row begins in the flat values, and the end."""
        offsets = _numbers(self._batch.column(name).offsets, np.int32).astype(np.int64)
        return np.subtract(offsets, offsets[:1])

    def values(self, name: str, start: int, stop: int) -> list[Any]:
        """Some values of a column as Python objects, counted flat."""
        return list(self._values(name).slice(start, stop - start).to_pylist())

    def _values(self, name: str) -> Any:
        column = self._batch.column(name)
        return column.flatten() if isinstance(column, pa.ListArray) else column


def _numbers(array: Any, dtype: Any) -> npt.NDArray[Any]:
    """The numbers of an Arrow array, not copied; pyarrow's to_numpy imports pandas, which takes half a second."""
    if not len(array):
        return np.zeros(0, dtype)
    return np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * np.dtype(dtype).itemsize)


def _read_batch(data: memoryview, schema: pa.Schema) -> Any:
    if bytes(data[:6]) != MAGIC or bytes(data[-6:]) != MAGIC:
        raise ValueError("the magic bytes are missing")
    reader = pa.ipc.MessageReader.open_stream(pa.BufferReader(pa.py_buffer(data[8:])))
    first = _next_message(reader)
    if first is None or first.type != "schema":
        raise ValueError("it does not begin with a schema")
    stated = pa.ipc.read_schema(first)
    if not stated.equals(schema, check_metadata=True):
        raise ValueError("its columns are not those of its cache")
    message = _next_message(reader)
    if message is None or message.type != "record batch" or _is_compressed(message.metadata.to_pybytes()):
        raise ValueError("it holds something else than one uncompressed record batch")
    if _next_message(reader) is not None:
        raise ValueError("it holds more than one record batch")
    return pa.ipc.read_record_batch(message, schema)


def _next_message(reader: Any) -> Any:
    """The next message, None where the file says that there is no more."""
    try:
        return reader.read_next_message()
    except StopIteration:
        return None


def _is_compressed(metadata: bytes) -> bool:
    """Whether a record batch's message (a flatbuffer) has its fourth field, `compression`: a bomb would hide there."""
    message = struct.unpack_from("<I", metadata, 0)[0]
    header = _field(metadata, message, 2)
    batch = header + struct.unpack_from("<I", metadata, header)[0]
    return _field(metadata, batch, 3) != 0


def _field(metadata: bytes, table: int, number: int) -> int:
    """The place of a field in a flatbuffer table, 0 when it is not there."""
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    size = struct.unpack_from("<H", metadata, vtable)[0]
    offset = struct.unpack_from("<H", metadata, vtable + 4 + 2 * number)[0] if size >= 6 + 2 * number else 0
    return table + offset if offset else 0


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
        raise CacheDamaged(f"{what}: a text does not decompress: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


class ParquetRows:
    """A person's Parquet file: its rows in order or by number, a thousand in memory at a time.

    A row is None where its text is not UTF-8.
    """

    def __init__(self, path: str, columns: Collection[str] | None = None) -> None:
        try:
            self._file = pq.ParquetFile(path)
        except (pa.ArrowException, OSError) as error:
            raise ConfigError(
                f"{path} cannot be read as Parquet: {_first_line(error)}", hint="is it whole? fetch or write it again"
            ) from None
        self._path = path
        there = self._file.schema_arrow.names
        self._columns = None if columns is None else [name for name in there if name in columns]
        sizes = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        self._ends = np.cumsum(sizes, dtype=np.int64)

    def rows(self) -> Iterator[dict[str, Any] | None]:
        """All rows, in order."""
        for batch in self._batches(range(self._file.num_row_groups)):
            yield from _to_rows(batch)

    def rows_at(self, numbers: Sequence[int]) -> Iterator[dict[str, Any] | None]:
        """The rows of ascending numbers; what lies between is decompressed, and not looked at."""
        groups = np.searchsorted(self._ends, numbers, "right").tolist()
        for group, members in groupby(zip(groups, numbers, strict=True), key=itemgetter(0)):
            wanted = deque(number for _, number in members)
            end = int(self._ends[group - 1]) if group else 0
            for batch in self._batches([group]):
                start, end = end, end + batch.num_rows
                here = []
                while wanted and wanted[0] < end:
                    here.append(wanted.popleft() - start)
                if here:
                    yield from _to_rows(batch.take(pa.array(here, pa.int64())))
                if not wanted:
                    break

    def _batches(self, groups: Iterable[int]) -> Iterator[Any]:
        try:
            yield from self._file.iter_batches(
                batch_size=PARQUET_BATCH, row_groups=list(groups), columns=self._columns, use_threads=False
            )
        except (pa.ArrowException, OSError) as error:
            raise ConfigError(f"{self._path} cannot be read as Parquet: {_first_line(error)}") from None


def _to_rows(batch: Any) -> Iterator[dict[str, Any] | None]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for i in range(batch.num_rows):
            try:
                yield batch.slice(i, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield None


class ParquetLists:
    """A person's Parquet file whose rows hold lists of numbers, or lists of lists, read as numpy arrays."""

    def __init__(self, path: str, columns: Collection[str]) -> None:
        try:
            self._file = pq.ParquetFile(path, buffer_size=1 << 20)
        except (pa.ArrowException, OSError) as error:
            raise ConfigError(
                f"{path} cannot be read as Parquet: {_first_line(error)}", hint="is it whole? fetch or write it again"
            ) from None
        self._path, self.names = path, list(self._file.schema_arrow.names)
        self._columns = [name for name in self.names if name in columns]
        for name in self._columns:
            kind = self._file.schema_arrow.field(name).type
            if not depth(kind):
                raise ConfigError(f"{path}: the column {name} is of type {kind}, lists of numbers were expected")
        self._ends = np.cumsum([self._group(i).num_rows for i in range(self._file.num_row_groups)], dtype=np.int64)

    def _group(self, number: int) -> Any:
        return self._file.metadata.row_group(number)

    def rows_at(self, numbers: Sequence[int] | None = None) -> Iterator[dict[str, Any]]:
        """The rows of ascending numbers, or all."""
        wanted = deque(range(int(self._ends[-1]) if len(self._ends) else 0) if numbers is None else numbers)
        for group in range(len(self._ends)):
            end = int(self._ends[group - 1]) if group else 0
            if wanted and wanted[0] < self._ends[group]:
                for batch in self._batches(group):
                    start, end = end, end + batch.num_rows
                    columns = {name: rows_of_lists(batch.column(name)) for name in self._columns}
                    while wanted and wanted[0] < end:
                        row = wanted.popleft() - start
                        yield {name: take(row) for name, take in columns.items()}

    def _batches(self, group: int) -> Iterator[Any]:
        metadata = self._group(group)
        chunks = [metadata.column(i) for i in range(metadata.num_columns)]
        read = [chunk for chunk in chunks if chunk.path_in_schema.startswith(tuple(f"{n}." for n in self._columns))]
        n_values, n_bytes = sum(c.num_values for c in read), sum(c.total_compressed_size for c in read)
        if n_values > MOST_VALUES + MOST_VALUES_A_BYTE * n_bytes:
            raise ConfigError(
                f"{self._path} unfolds to {n_values:,} numbers from {n_bytes:,} bytes, which no such file does",
                hint="is it what it should be? write it again without repeating lists",
            )
        rows = max(1, min(PARQUET_BATCH, metadata.num_rows * LISTS_BATCH_BYTES // max(1, 8 * n_values)))
        try:
            yield from self._file.iter_batches(
                batch_size=rows, row_groups=[group], columns=self._columns, use_threads=False
            )
        except (pa.ArrowException, OSError) as error:
            raise ConfigError(f"{self._path} cannot be read as Parquet: {_first_line(error)}") from None


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
    """What a Parquet file says of itself, and how many rows it has; nothing when it is none."""
    try:
        metadata = pq.read_metadata(path)
    except (pa.ArrowException, OSError):
        return {}, 0
    notes = metadata.metadata or {}
    return {key.decode("utf-8", "replace"): value.decode("utf-8", "replace") for key, value in notes.items()}, int(
        metadata.num_rows
    )
