"""What a stranger's Parquet file unfolds to, known before the library unfolds it.

In: page headers, and Arrow arrays whose texts are still dictionaries. Out: how large pages are, how many values they
have, and the memory that each row takes as Python objects; or a ValueError. A few kilobytes can stand for gigabytes:
by compression, by runs of one value, and by a long text that a dictionary has once and rows name often.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from kdpipe.cache.format.number_lists import list_lengths, view
from kdpipe.cache.parts.parquet_footer import ENCODINGS, ColumnChunk, Leaf
from kdpipe.cache.parts.thrift import I32, CompactReader, Shape

# A page in memory: writers make them of 1 MB, DuckDB of up to 100. All columns have one open at a time.
MAX_PAGE_BYTES, MAX_OPEN_BYTES = 1 << 27, 1 << 28
HEADER_BYTES, MAX_HEADER_BYTES = 1 << 12, 1 << 20
# Values of a row group: the values of one row may be all of them.
MOST_VALUES, MOST_VALUES_A_BYTE = 1 << 24, 8
# Python objects, in bytes: a number, a text without its characters, a list or a dictionary. A character may take 4.
NUMBER, TEXT, GROUP, A_BYTE = 40, 60, 100, 5
DICTIONARY_PAGE = 2
# Writers end a dictionary at 1 MB; a larger one is not read for its longest text.
MAX_SCANNED_BYTES = 1 << 22
# Of the Parquet format: kinds of pages, encodings of levels and of dictionaries, and one that repeats the text before.
PAGE_KINDS, LEVEL_ENCODINGS, PLAIN_ENCODINGS, DICTIONARIES, PREFIXES = range(4), (3, 4), (0, 2), (2, 8), 7
_DATA: Shape = {1: I32, 2: I32, 3: I32, 4: I32}
_HEADER: Shape = {
    1: I32, 2: I32, 3: I32, 5: _DATA, 7: {1: I32, 2: I32}, 8: {1: I32, 2: I32, 3: I32, 4: I32, 5: I32, 6: I32}
}  # fmt: skip
# Which struct of a header goes with which kind of page; an index page is not read.
_BODIES = {0: 5, 2: 7, 3: 8}
Longs = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """The pages of a column chunk: bytes of the largest ones in memory, values, bytes in the file.

    `names` counts the values that name one of the dictionary; `dictionary` is its place and bytes in the file.
    """

    dictionary_bytes: int
    data_bytes: int
    n_values: int
    stored_bytes: int
    names: int
    dictionary: tuple[int, int]


def read_pages(file: BinaryIO, chunk: ColumnChunk, leaf: Leaf) -> Pages:
    """The pages of a chunk, by their headers alone."""
    dictionary = data = n_values = names = 0
    dictionary_page = (0, 0)
    place, end = chunk.start, chunk.start + chunk.n_bytes
    while place < end:
        header, place = _header(file, place)
        size, stored = header.get(2), header.get(3)
        if type(size) is not int or type(stored) is not int or size < 0 or stored < 0:
            raise ValueError("a page header has no sizes")
        if size > MAX_PAGE_BYTES:
            raise ValueError(f"a page unfolds to {size:,} bytes, at most {MAX_PAGE_BYTES:,} are allowed")
        if stored > end - place:
            raise ValueError("a page is longer than its column")
        count = _n_values(header, leaf)
        if header[1] == DICTIONARY_PAGE:
            if dictionary_page != (0, 0):
                raise ValueError("a column has two dictionaries")
            dictionary, dictionary_page = size, (place, stored)
        else:
            data = max(data, size)
            n_values += count
            names += count if _encoding(header) in DICTIONARIES else 0
        place += stored
    return Pages(
        dictionary_bytes=dictionary,
        data_bytes=data,
        n_values=n_values,
        stored_bytes=chunk.n_bytes,
        names=names,
        dictionary=dictionary_page,
    )


def _encoding(header: dict[int, Any]) -> int | None:
    """How the values of a page are encoded."""
    encoding: int | None = header.get(_BODIES.get(header[1], 0), {}).get(4 if header[1] == 3 else 2)
    return encoding


def named_bytes(file: BinaryIO, pages: Pages, decompressed: Callable[[bytes, int], bytes | None]) -> int:
    """The bytes that the values take at most which name a text of the dictionary."""
    longest = pages.dictionary_bytes
    if pages.names and longest <= MAX_SCANNED_BYTES:
        file.seek(pages.dictionary[0])
        page = decompressed(file.read(pages.dictionary[1]), longest)
        longest = longest if page is None else _longest_text(page)
    return pages.names * longest


def _longest_text(dictionary: bytes) -> int:
    """The bytes of the longest text of a dictionary page, which has each behind its length."""
    longest = place = 0
    while place < len(dictionary):
        length = int.from_bytes(dictionary[place : place + 4], "little")
        longest, place = max(longest, length), place + 4 + length
    if place > len(dictionary):
        raise ValueError("a text is longer than its dictionary")
    return longest


def _header(file: BinaryIO, place: int) -> tuple[dict[int, Any], int]:
    """A page header, and where it ends."""
    for most in (HEADER_BYTES, MAX_HEADER_BYTES):
        file.seek(place)
        data = file.read(most)
        reader = CompactReader(data, 0, len(data))
        try:
            header = reader.struct(shape=_HEADER)
        except ValueError:
            if len(data) < most or most == MAX_HEADER_BYTES:
                raise
            continue
        return header, place + reader.place
    raise AssertionError("the last size returns or raises")


def _n_values(header: dict[int, Any], leaf: Leaf) -> int:
    """The values of a page, all numbers of which must be ones that the format knows; an index page has none."""
    kind = header.get(1)
    if kind not in PAGE_KINDS:
        raise ValueError("a page is of an unknown kind")
    if kind not in _BODIES:
        return 0
    page = header.get(_BODIES[kind], {})
    n_values, encoding = page.get(1, -1), _encoding(header)
    if kind == DICTIONARY_PAGE:
        known = encoding in PLAIN_ENCODINGS
    elif kind == 3:
        levels = page.get(5, -1), page.get(6, -1)
        known = encoding in ENCODINGS and min(levels) >= 0 and sum(levels) <= min(header[2], header[3])
        known = known and 0 <= page.get(2, -1) <= n_values and 0 <= page.get(3, -1) <= n_values
    else:
        known = encoding in ENCODINGS and page.get(3) in LEVEL_ENCODINGS and page.get(4) in LEVEL_ENCODINGS
    if n_values < 0 or not known:
        raise ValueError("a page has numbers or encodings that the format does not know")
    if leaf.repeated and encoding == PREFIXES:
        raise ValueError("texts in lists are stored by what they share with the one before (DELTA_BYTE_ARRAY)")
    return int(n_values)


def check_pages(pages: Iterable[Pages]) -> None:
    """Refuse a row group that unfolds too far."""
    pages = list(pages)
    n_open = sum(page.dictionary_bytes + page.data_bytes for page in pages)
    if n_open > MAX_OPEN_BYTES:
        raise ValueError(f"pages of its columns unfold to {n_open:,} bytes, at most {MAX_OPEN_BYTES:,} are allowed")
    check_values(sum(page.n_values for page in pages), sum(page.stored_bytes for page in pages))


def check_values(n_values: int, n_bytes: int) -> None:
    """Refuse more values than bytes of a row group, or of a file, stand for."""
    if n_values > MOST_VALUES + MOST_VALUES_A_BYTE * n_bytes:
        raise ValueError(f"it unfolds to {n_values:,} values from {n_bytes:,} bytes, which no such file does")


def check_dictionaries(arrays: Iterable[Any]) -> None:
    """Refuse arrays with a place beyond the end of its dictionary, which the library does not look at."""
    for array in arrays:
        match str(array.type).partition("<")[0]:
            case "list" | "large_list" | "fixed_size_list" | "map" | "struct":
                inner = array.flatten()
                check_dictionaries(inner if isinstance(inner, list) else [inner])
            case "dictionary" if len(array):
                places = array.indices.drop_null()
                numbers = view(places, places.type.to_pandas_dtype())
                if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(array.dictionary):
                    raise ValueError("a value is beyond the end of its dictionary")


def row_costs(columns: Sequence[Any], n_rows: int) -> Longs:
    """The memory of each row of some columns as Python objects."""
    return _summed([_costs(column) for column in columns], n_rows)


def _summed(costs: Sequence[Longs], n: int) -> Longs:
    total = np.zeros(n, np.int64)
    for cost in costs:
        total += cost
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
            costs: Longs = known[view(places, places.type.to_pandas_dtype())]
            return costs
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
    """Sums over consecutive lists."""
    sums, ends = np.concatenate([[0], np.cumsum(costs)]), np.cumsum(lengths)
    totals: Longs = sums[ends] - sums[ends - lengths]
    return totals
