"""The page headers of a Parquet column: pages as we write them cannot grow when they are read, all others might.

In: the bytes of a file and where a column lies. Out: nothing, or a refusal of dictionaries (a long string named by
every row), of prefixes shared between rows, and of pages that claim more than they hold.
Before it: nothing. After it: `arrow_files.py` lets pyarrow read what passed. Headers are Thrift's compact protocol.
"""

DATA_PAGE = 0
PLAIN = 0
_INT32, _STRUCT = 5, 12


def check_pages(data: bytes, start: int, size: int, n_rows: int) -> None:
    """Walk the pages of a column, which must be plain data pages that fill its place and hold its rows."""
    place, end = start, start + size
    if not 0 <= start <= end <= len(data):
        raise ValueError("a column lies outside the file")
    seen = 0
    while place < end:
        header, place = _struct(data, place)
        page = header.get(5)
        sizes = header.get(2), header.get(3)
        if header.get(1) != DATA_PAGE or not isinstance(page, dict) or page.get(2) != PLAIN:
            raise ValueError("a page is not plain")
        if not isinstance(sizes[0], int) or sizes[0] != sizes[1] or not 0 <= sizes[0] <= end - place:
            raise ValueError("a page claims another size than it has")
        n_values = page.get(1)
        if not isinstance(n_values, int) or not 0 < n_values <= n_rows - seen:
            raise ValueError("a page claims more values than there are rows")
        place, seen = place + sizes[0], seen + n_values
    if seen != n_rows:
        raise ValueError(f"a column has {seen:,} values, {n_rows:,} are due")


def _struct(data: bytes, place: int, depth: int = 0) -> tuple[dict[int, object], int]:
    """The 32-bit numbers and structs of a struct by field number, and the place behind it; other types are refused."""
    fields: dict[int, object] = {}
    number = 0
    while place < len(data) and data[place]:
        kind, step = data[place] & 15, data[place] >> 4
        number += step
        if not step or kind not in (_INT32, _STRUCT) or depth > 2:
            raise ValueError("a page header has other fields than it should")
        if kind == _STRUCT:
            fields[number], place = _struct(data, place + 1, depth + 1)
        else:
            fields[number], place = _int(data, place + 1)
    if place >= len(data):
        raise ValueError("a page header does not end")
    return fields, place + 1


def _int(data: bytes, place: int) -> tuple[int, int]:
    """A number in zigzag and seven bits a byte."""
    value = shift = 0
    while shift < 35 and place < len(data):
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return (value >> 1) ^ -(value & 1), place
    raise ValueError("a number in a page header does not end")
