"""Parquet files of one plain, uncompressed row group, as index.parquet is one, read without Parquet's own library: that
ends the process at an unknown codec, trusts counts, and unfolds dictionaries.

In: the bytes of a file of anyone's making, and the columns that it must have. Out: the columns and the notes, or a
ValueError. Everything that is not exactly so is refused; nothing is decompressed or unfolded, so that memory and time
follow from the size of the file. `arrow_files.py` writes these files; a test compares this reader with pyarrow.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from kdpipe.cache.parts.parquet_footer import MAGIC, TAIL_BYTES, Struct, footer_place, integer, structs
from kdpipe.cache.parts.parquet_footer import struct as struct_in
from kdpipe.cache.parts.thrift import CompactReader

# What is read as Python objects, each many times as large as its bytes, and how many pages a column may be cut into.
MAX_FOOTER_BYTES: Final = 1 << 16
MAX_HEADER_BYTES: Final = 1 << 10
LEAST_PAGE_VALUES: Final = 64
DATA_PAGE: Final = 0
PLAIN: Final = 0
UNCOMPRESSED: Final = 0
REQUIRED: Final = 0
# Physical type and converted type of the Parquet format.
_INT32, _INT64, _BYTE_ARRAY = 1, 2, 6
_UTF8, _UINT_32, _UINT_64 = 0, 13, 14
TYPES: Final = {"uint32": (_INT32, _UINT_32), "uint64": (_INT64, _UINT_64), "string": (_BYTE_ARRAY, _UTF8)}
_NUMBERS: Final = {_INT32: "<u4", _INT64: "<u8"}


@dataclass(frozen=True, slots=True)
class PlainColumn:
    """The name of a column and its type: uint32, uint64 or string."""

    name: str
    type: str


def read_plain_parquet(
    data: bytes, columns: Sequence[PlainColumn], n_rows: int
) -> tuple[dict[str, list[Any]], dict[str, str]]:
    """The values of every column, and the file's key-value metadata."""
    footer, begin = _footer(data)
    groups = structs(footer, 4, "row groups")
    if len(groups) != 1:
        raise ValueError(f"it has {len(groups):,} row groups, 1 is expected")
    chunks, stated = structs(groups[0], 1, "columns"), integer(footer, 3, "rows")
    if stated != n_rows or groups[0].get(3) != n_rows or len(chunks) != len(columns):
        raise ValueError(
            f"it has {stated:,} rows in {len(chunks):,} columns, expected are {n_rows:,} in {len(columns)}"
        )
    _check_schema(structs(footer, 2, "schema"), columns)
    values = {
        column.name: _column(data, begin, chunk, column, n_rows) for column, chunk in zip(columns, chunks, strict=True)
    }
    return values, dict(_note(note) for note in structs(footer, 5, "notes"))


def _footer(data: bytes) -> tuple[Struct, int]:
    """The footer, and where it begins."""
    if not data.startswith(MAGIC):
        raise ValueError("the magic bytes are missing")
    begin, end = footer_place(len(data), data[-TAIL_BYTES:], MAX_FOOTER_BYTES)
    reader = CompactReader(data, begin, end)
    footer = reader.struct()
    if reader.place != end:
        raise ValueError("its footer is shorter than stated")
    return footer, begin


def _check_schema(elements: list[Struct], columns: Sequence[PlainColumn]) -> None:
    """The root and the columns under it: flat, without missing values, of exactly these names and types."""
    due = [(column.name.encode(), *TYPES[column.type], REQUIRED) for column in columns]
    stated = [(e.get(4), e.get(1), e.get(6), e.get(3)) for e in elements[1:]]
    if not elements or elements[0].get(5) != len(columns) or stated != due or any(e.get(5) for e in elements[1:]):
        raise ValueError("its columns are not those of an index")


def _column(data: bytes, end: int, chunk: Struct, column: PlainColumn, n_rows: int) -> list[Any]:
    metadata = struct_in(chunk, 3, f"what the column {column.name} is")
    physical, _ = TYPES[column.type]
    if metadata.get(1) != physical or metadata.get(3) != [column.name.encode()]:
        raise ValueError(f"the column {column.name} is another one")
    if metadata.get(4) != UNCOMPRESSED:
        raise ValueError(f"the column {column.name} is compressed, or of an unknown codec")
    if chunk.get(1) is not None or metadata.get(11) is not None:
        raise ValueError(f"the column {column.name} is in another file, or has a dictionary")
    size = integer(metadata, 7, "bytes")
    if size != metadata.get(6) or metadata.get(5) != n_rows:
        raise ValueError(f"the column {column.name} has other sizes than {n_rows:,} plain values")
    start = integer(metadata, 9, "the first page")
    if not len(MAGIC) <= start <= start + size <= end:
        raise ValueError(f"the column {column.name} is outside the file")
    return _pages(data, start, start + size, physical, n_rows)


def _pages(data: bytes, place: int, end: int, physical: int, n_rows: int) -> list[Any]:
    """The values of plain data pages one behind the other, which must fill their place."""
    values: list[Any] = []
    while place < end:
        reader = CompactReader(data, place, min(end, place + MAX_HEADER_BYTES))
        header = reader.struct()
        page = struct_in(header, 5, "the head of a data page")
        size, n_values = integer(header, 3, "bytes"), integer(page, 1, "values")
        if header.get(1) != DATA_PAGE or page.get(2) != PLAIN:
            raise ValueError("a page is not plain")
        if page.get(5):
            raise ValueError("a page header has statistics")
        if size != header.get(2) or not 0 <= size <= end - reader.place:
            raise ValueError("a page claims another size than it has")
        if not 0 < n_values <= n_rows - len(values):
            raise ValueError("a page claims more values than there are rows")
        if n_values < min(LEAST_PAGE_VALUES, n_rows - len(values)):
            raise ValueError(
                f"a page holds {n_values} values: at least {LEAST_PAGE_VALUES} are expected, but in the last"
            )
        body = data[reader.place : reader.place + size]
        if 4 in header and zlib.crc32(body) != integer(header, 4, "the checksum") & 0xFFFFFFFF:
            raise ValueError("a page does not match its crc32")
        values += _numbers(body, physical, n_values) if physical in _NUMBERS else _texts(body, n_values)
        place = reader.place + size
    if len(values) != n_rows:
        raise ValueError(f"a column has {len(values):,} values, {n_rows:,} are expected")
    return values


def _numbers(body: bytes, physical: int, n_values: int) -> list[int]:
    dtype = np.dtype(_NUMBERS[physical])
    if len(body) != n_values * dtype.itemsize:
        raise ValueError(f"a page has {len(body):,} bytes for {n_values:,} numbers")
    return list(np.frombuffer(body, dtype).tolist())


def _texts(body: bytes, n_values: int) -> list[str]:
    values, place = [], 0
    for _ in range(n_values):
        if place + 4 > len(body):
            raise ValueError("a page ends within a text")
        begin = place + 4
        place = begin + int(struct.unpack_from("<I", body, place)[0])
        if place > len(body):
            raise ValueError("a text is longer than its page")
        values.append(body[begin:place].decode())
    if place != len(body):
        raise ValueError("a page holds more texts than its header has")
    return values


def _note(note: Struct) -> tuple[str, str]:
    key, value = note.get(1), note.get(2, b"")
    if not isinstance(key, bytes) or not isinstance(value, bytes):
        raise ValueError("a note is no text")
    return key.decode("utf-8", "replace"), value.decode("utf-8", "replace")
