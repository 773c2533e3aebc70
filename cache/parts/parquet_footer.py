"""The footer of a Parquet file, read and checked without Parquet's own library, which ends the process at some footers
or reserves what their numbers claim.

In: a file of anyone's making. Out: its columns and where their values are, or a ValueError. `plain_parquet.py` reads
the rest of a file of ours from there, `arrow_files.py` lets the library read a stranger's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from kdpipe.cache.parts.thrift import BINARY, I32, I64, LIST, CompactReader, Shape

MAGIC: Final = b"PAR1"
TAIL_BYTES: Final = 8
# Two gigabytes in row groups of a thousand rows have a footer of 3 MB.
MAX_FOOTER_BYTES: Final = 1 << 25
MAX_COLUMNS, MAX_DEPTH = 10_000, 60
# Bytes of a row in columns of byte strings of one width: missing ones take as much memory.
MAX_FIXED_BYTES: Final = 1 << 16
# Files with so many rows and more have a byte for each of them.
MOST_ROWS: Final = 1 << 18
BYTE_ARRAY: Final = 6
FIXED_WIDTH: Final = 7
# Of the Parquet format: physical and converted types, repetitions, encodings, and codecs but for LZO.
PHYSICAL_TYPES, CONVERTED_TYPES, REPETITIONS = range(8), range(22), range(3)
REPEATED: Final = 2
ENCODINGS: Final = frozenset((0, 2, 3, 4, 5, 6, 7, 8, 9))
CODECS: Final = frozenset((0, 1, 2, 4, 5, 6, 7))
_ELEMENT: Shape = {1: I32, 2: I32, 3: I32, 4: BINARY, 5: I32, 6: I32}
_CHUNK: Shape = {1: BINARY, 3: {1: I32, 2: LIST, 4: I32, 5: I64, 6: I64, 7: I64, 9: I64, 11: I64}, 8: {}, 9: BINARY}
Struct = dict[int, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A column of values: its names from the top, its physical type and width, and whether it is within lists."""

    path: str
    top: str
    type: int
    width: int
    repeated: bool


@dataclass(frozen=True, slots=True)
class ColumnChunk:
    """The values of a column in a row group: the first byte of their pages, bytes, and the number of their codec."""

    start: int
    n_bytes: int
    codec: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A row group: rows, and a chunk for each leaf."""

    n_rows: int
    chunks: tuple[ColumnChunk, ...]


@dataclass(frozen=True, slots=True)
class Footer:
    """The leaves of a file, and its row groups."""

    leaves: tuple[Leaf, ...]
    groups: tuple[Group, ...]


def footer_place(n_bytes: int, tail: bytes, most: int) -> tuple[int, int]:
    """Where a file's footer begins and ends, by its last bytes."""
    end = n_bytes - TAIL_BYTES
    if end < len(MAGIC) or tail[4:] != MAGIC:
        raise ValueError("the magic bytes are missing")
    begin = end - int.from_bytes(tail[:4], "little")
    if begin < len(MAGIC) or end - begin > most:
        raise ValueError(f"its footer is longer than the file, or than {most:,} bytes")
    return begin, end


def structs(parent: Struct, number: int, what: str) -> list[Struct]:
    """A list of structs."""
    value = parent.get(number)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(f"its footer has no list of {what}")
    return value


def struct(parent: Struct, number: int, what: str) -> Struct:
    """A struct within another."""
    value = parent.get(number)
    if not isinstance(value, dict):
        raise ValueError(f"{what} is missing")
    return value


def integer(parent: Struct, number: int, what: str) -> int:
    """A number that must be there."""
    value = parent.get(number)
    if type(value) is not int:
        raise ValueError(f"the number of {what} is missing")
    return value


def read_footer(file: BinaryIO, n_bytes: int) -> Footer:
    """The footer of a file; struct by struct, so that it takes no more memory than what is kept of it."""
    file.seek(max(0, n_bytes - TAIL_BYTES))
    begin, end = footer_place(n_bytes, file.read(TAIL_BYTES), MAX_FOOTER_BYTES)
    file.seek(begin)
    reader = CompactReader(data := file.read(end - begin), 0, len(data))
    leaves: tuple[Leaf, ...] = ()
    groups: list[Group] = []
    n_rows = -1
    for number, kind in reader.fields():
        if number == 2:
            leaves = _leaves([_element(reader) for _ in _bounded(reader, kind, MAX_COLUMNS, "columns")])
        elif number == 3 and kind == I64:
            n_rows = reader.number(kind)
        elif number == 4:
            groups = [_group(reader, leaves, begin) for _ in reader.structs(kind)]
        elif number in (8, 9):
            raise ValueError("it is encrypted")
        else:
            reader.skip(kind, 0)
    if reader.place != len(data) or not leaves:
        raise ValueError("its footer is shorter than stated, or has no columns")
    if n_rows != sum(group.n_rows for group in groups):
        raise ValueError(f"its footer has {n_rows:,} rows, its row groups have others")
    if n_rows > MOST_ROWS + n_bytes:
        raise ValueError(f"it has {n_rows:,} rows in {n_bytes:,} bytes, which no such file does")
    if sum(chunk.n_bytes for group in groups for chunk in group.chunks) > begin:
        raise ValueError("its columns have more bytes than the file")
    return Footer(leaves, tuple(groups))


def _bounded(reader: CompactReader, kind: int, most: int, what: str) -> Iterator[int]:
    for i in reader.structs(kind):
        if i >= most:
            raise ValueError(f"it has more than {most:,} {what}")
        yield i


def _element(reader: CompactReader) -> Struct:
    element = reader.struct(1, _ELEMENT)
    n_children = element.get(5, 0)
    known = (
        element.get(1, 0) in PHYSICAL_TYPES
        and element.get(3, 0) in REPETITIONS
        and element.get(6, 0) in CONVERTED_TYPES
    )
    if not known or 4 not in element or not 0 <= n_children <= MAX_COLUMNS or (not n_children and 1 not in element):
        raise ValueError("a column is of an unknown type")
    return element


def _leaves(elements: list[Struct]) -> tuple[Leaf, ...]:
    """The columns that hold values; in the list of elements each group precedes its children."""
    leaves: list[Leaf] = []
    # Of each open group: children to come, its names, and whether it is within a list.
    opened: list[tuple[int, tuple[str, ...], bool]] = [(elements[0].get(5, 0), (), False)] if elements else []
    for element in elements[1:]:
        while opened and not opened[-1][0]:
            opened.pop()
        if not opened or len(opened) > MAX_DEPTH:
            raise ValueError(f"its columns form no tree, or one deeper than {MAX_DEPTH} levels")
        left, names, repeated = opened[-1]
        opened[-1] = (left - 1, names, repeated)
        names, repeated = (*names, element[4].decode("utf-8")), repeated or element.get(3) == REPEATED
        if element.get(5):
            opened.append((element[5], names, repeated))
        else:
            width = element.get(2, 0)
            leaves.append(Leaf(path=".".join(names), top=names[0], type=element[1], width=width, repeated=repeated))
    if any(left for left, _, _ in opened):
        raise ValueError("its columns form no tree")
    widths = [leaf.width for leaf in leaves if leaf.type == FIXED_WIDTH]
    if any(width < 0 for width in widths) or sum(widths) > MAX_FIXED_BYTES:
        raise ValueError(f"its columns of one width have more than {MAX_FIXED_BYTES:,} bytes per row")
    return tuple(leaves)


def _group(reader: CompactReader, leaves: tuple[Leaf, ...], end: int) -> Group:
    """A row group; the columns come before it in the footer, as the library writes and needs them."""
    chunks: list[ColumnChunk] = []
    n_rows = -1
    for number, kind in reader.fields(1):
        if number == 1:
            for i in _bounded(reader, kind, len(leaves), "chunks in a row group"):
                chunks.append(_chunk(reader.struct(2, _CHUNK), leaves[i], end))
        elif number == 3 and kind == I64:
            n_rows = reader.number(kind)
        else:
            reader.skip(kind, 1)
    if n_rows < 0 or len(chunks) != len(leaves):
        raise ValueError("a row group does not have the columns or rows of the file")
    return Group(n_rows=n_rows, chunks=tuple(chunks))


def _chunk(chunk: Struct, leaf: Leaf, end: int) -> ColumnChunk:
    metadata = struct(chunk, 3, "what a column is")
    if 1 in chunk or 8 in chunk or 9 in chunk:
        raise ValueError("a column is in another file, or encrypted")
    if metadata.get(1) != leaf.type or metadata.get(4) not in CODECS or not ENCODINGS.issuperset(metadata.get(2, ())):
        raise ValueError("a column is of another type than in the schema, or of an unknown codec or encoding")
    n_bytes, first = integer(metadata, 7, "bytes"), integer(metadata, 9, "the first page")
    dictionary = metadata.get(11, 0)
    start = min(first, dictionary) if first and dictionary > 0 else first
    if not 0 <= start <= start + n_bytes <= end:
        raise ValueError("a column is outside the file")
    if integer(metadata, 5, "values") < 0 or integer(metadata, 6, "bytes") < 0:
        raise ValueError("a column has fewer than no values")
    return ColumnChunk(start, n_bytes, metadata[4])
