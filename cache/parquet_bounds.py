"""What a stranger's Parquet file unfolds to, known before the library unfolds it.

In: page headers, and Arrow arrays whose texts are still dictionaries. Out: how large pages are, how many values they
have, and the memory that each row takes as Python objects; or a ValueError. A few kilobytes can stand for gigabytes:
by compression, by runs of one value, and by a long text that a dictionary has once and rows name often.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from kdpipe.cache.number_lists import list_lengths, view
from kdpipe.cache.thrift import CompactReader

# A page in memory: writers make them of 1 MB, DuckDB of up to 100. All columns have one open at a time.
MAX_PAGE_BYTES, MAX_OPEN_BYTES = 1 << 27, 1 << 28
HEADER_BYTES, MAX_HEADER_BYTES = 1 << 12, 1 << 20
# Values of a row group: the values of one row may be all of them.
MOST_VALUES, MOST_VALUES_A_BYTE = 1 << 24, 8
# Python objects, in bytes: a number, a text without its characters, a list or a dictionary. A character may take 4.
NUMBER, TEXT, GROUP, A_BYTE = 40, 60, 100, 5
DICTIONARY_PAGE = 2
Longs = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """The pages of a column chunk: bytes of the largest ones in memory, values, and bytes in the file."""

    dictionary_bytes: int
    data_bytes: int
    n_values: int
    stored_bytes: int


def read_pages(file: BinaryIO, start: int, n_bytes: int) -> Pages:
    """The pages of a chunk, by their headers alone."""
    dictionary = data = n_values = 0
    place = start
    while place < start + n_bytes:
        header, place = _header(file, place)
        size, stored = header.get(2), header.get(3)
        if type(size) is not int or type(stored) is not int or size < 0 or stored < 0:
            raise ValueError("a page header has no sizes")
        if size > MAX_PAGE_BYTES:
            raise ValueError(f"a page unfolds to {size:,} bytes, at most {MAX_PAGE_BYTES:,} are allowed")
        if header.get(1) == DICTIONARY_PAGE:
            dictionary = max(dictionary, size)
        else:
            data = max(data, size)
            n_values += _n_values(header)
        place += stored
    return Pages(dictionary_bytes=dictionary, data_bytes=data, n_values=n_values, stored_bytes=n_bytes)


def _header(file: BinaryIO, place: int) -> tuple[dict[int, Any], int]:
    """A page header, and where it ends."""
    for most in (HEADER_BYTES, MAX_HEADER_BYTES):
        file.seek(place)
        data = file.read(most)
        reader = CompactReader(data, 0, len(data))
        try:
            header = reader.struct()
        except ValueError:
            if len(data) < most or most == MAX_HEADER_BYTES:
                raise
            continue
        return header, place + reader.place
    raise AssertionError("the last size returns or raises")


def _n_values(header: dict[int, Any]) -> int:
    """The values of a data page of either version; an index page has none."""
    for field in (5, 8):
        page = header.get(field)
        if isinstance(page, dict):
            n_values = page.get(1)
            if type(n_values) is not int or n_values < 0:
                raise ValueError("a data page does not say how many values it has")
            return n_values
    return 0


def check_pages(pages: Iterable[Pages]) -> None:
    """Refuse a row group that unfolds too far."""
    pages = list(pages)
    n_open = sum(page.dictionary_bytes + page.data_bytes for page in pages)
    if n_open > MAX_OPEN_BYTES:
        raise ValueError(f"pages of its columns unfold to {n_open:,} bytes, at most {MAX_OPEN_BYTES:,} are allowed")
    n_values, n_bytes = sum(page.n_values for page in pages), sum(page.stored_bytes for page in pages)
    if n_values > MOST_VALUES + MOST_VALUES_A_BYTE * n_bytes:
        raise ValueError(f"it unfolds to {n_values:,} values from {n_bytes:,} bytes, which no such file does")


def row_costs(columns: Sequence[Any], n_rows: int) -> Longs:
    """The memory of each row of some columns as Python objects."""
    return _summed([_costs(column) for column in columns], n_rows)


def _summed(costs: Sequence[Longs], n: int) -> Longs:
    total = np.zeros(n, np.int64)
    for each in costs:
        total += each
    return total


def _costs(array: Any) -> Longs:
    """The memory of each value of an array as Python objects; texts of a dictionary are not copied out of it."""
    kind = str(array.type).partition("<")[0]
    match kind:
        case "list" | "large_list" | "fixed_size_list" | "map":
            return _grouped(_costs(array.flatten()), list_lengths(array)) + GROUP
        case "struct":
            return _summed([_costs(field) for field in array.flatten()], len(array)) + GROUP
        case "dictionary":
            known = np.append(_costs(array.dictionary), np.int64(TEXT))
            places = array.indices.fill_null(len(known) - 1)
            found: Longs = known[view(places, places.type.to_pandas_dtype())]
            return found
        case "string" | "binary" | "large_string" | "large_binary":
            return TEXT + A_BYTE * _text_lengths(array, np.int64 if kind.startswith("large") else np.int32)
        case "string_view" | "binary_view" | "extension":
            return np.full(len(array), TEXT + A_BYTE * array.nbytes, np.int64)
        case _:
            return np.full(len(array), NUMBER, np.int64)


def _text_lengths(array: Any, kind: type[np.int32 | np.int64]) -> Longs:
    ends = np.frombuffer(array.buffers()[1] or b"", kind)[array.offset : array.offset + len(array) + 1]
    if not len(array):
        return np.zeros(0, np.int64)
    lengths: Longs = ends[1:].astype(np.int64) - ends[:-1].astype(np.int64)
    return lengths


def _grouped(costs: Longs, lengths: Longs) -> Longs:
    """Sums over lists behind each other."""
    sums, ends = np.concatenate([[0], np.cumsum(costs)]), np.cumsum(lengths)
    found: Longs = sums[ends] - sums[ends - lengths]
    return found
