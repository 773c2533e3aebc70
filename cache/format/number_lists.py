"""Arrow columns of lists of numbers as numpy arrays row by row, and back.

In: an Arrow column of lists, or of lists of lists, of numbers. Out: for each row an array, or `NumberLists`. Data
without gaps is not copied.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

LISTS = ("list", "large_list", "fixed_size_list")
WIDTHS = ("8", "16", "32", "64")
TEXTS, FLOATS = ("string", "large_string"), ("halffloat", "float", "double")
NUMBERS = {*(f"{sign}int{width}" for sign in ("", "u") for width in WIDTHS), "halffloat", "float", "double", "bool"}
Longs = npt.NDArray[np.int64]


class NumberLists(NamedTuple):
    """A list of lists of numbers, concatenated, and the length of each list (0 if it is missing)."""

    values: npt.NDArray[Any]
    counts: Longs


class EntryLists(NamedTuple):
    """A list of lists of entries, each a token as text and a log-probability, as in responses of servers."""

    tokens: list[str | None]
    logprobs: npt.NDArray[Any]
    counts: Longs


def depth(kind: Any) -> int:
    """The nesting of lists around numbers, or around entries, in an Arrow type: 1 or 2, 0 for anything else."""
    deep = 0
    while _is_list(kind):
        deep, kind = deep + 1, kind.value_type
    return deep if deep <= 2 and (str(kind) in NUMBERS or (deep == 2 and _is_entry(kind))) else 0


def _is_entry(kind: Any) -> bool:
    """Whether a type is a struct with a token as text and its log-probability."""
    if not str(kind).startswith("struct<"):
        return False
    types = {kind.field(i).name: str(kind.field(i).type) for i in range(kind.num_fields)}
    token = types.get("token", "").removeprefix("dictionary<values=").partition(",")[0]
    return token in TEXTS and types.get("logprob") in FLOATS


def _is_list(kind: Any) -> bool:
    return _kind(kind) in LISTS


def _kind(kind: Any) -> str:
    return str(kind).partition("<")[0]


def rows_of_lists(column: Any) -> Callable[[int], Any]:
    """A function that gives a row of a column: an array, `NumberLists`, or None for a missing value."""
    lengths, inner = list_lengths(column), column.flatten()
    ends, there = np.cumsum(lengths), _is_present(column)
    if not _is_list(inner.type):
        values = _values(inner)
        return lambda row: values[ends[row] - lengths[row] : ends[row]] if there[row] else None
    counts = list_lengths(inner)
    places = np.concatenate([[0], np.cumsum(counts)])
    if _is_entry(inner.type.value_type):
        return _rows_of_entries(inner.flatten(), lengths, counts, there)
    values = _values(inner.flatten())

    def lists(row: int) -> NumberLists | None:
        first, end = ends[row] - lengths[row], ends[row]
        return NumberLists(values[places[first] : places[end]], counts[first:end]) if there[row] else None

    return lists


def _rows_of_entries(entries: Any, lengths: Longs, counts: Longs, there: npt.NDArray[np.bool_]) -> Callable[[int], Any]:
    names = [entries.type.field(i).name for i in range(entries.type.num_fields)]
    fields = dict(zip(names, entries.flatten(), strict=True))
    tokens, logprobs = _short_texts(fields["token"]), _values(fields["logprob"])
    ends, places = np.cumsum(lengths), np.concatenate([[0], np.cumsum(counts)])

    def lists(row: int) -> EntryLists | None:
        first, end = ends[row] - lengths[row], ends[row]
        some = slice(places[first], places[end])
        return EntryLists(tokens[some], logprobs[some], counts[first:end]) if there[row] else None

    return lists


def _short_texts(texts: Any) -> list[str | None]:
    """Texts as Python strings; those of a dictionary are created once."""
    if _kind(texts.type) != "dictionary":
        return list(texts.to_pylist())
    known = [*texts.dictionary.to_pylist(), None]
    places = texts.indices.fill_null(len(known) - 1)
    return [known[place] for place in view(places, places.type.to_pandas_dtype()).tolist()]


def joined(rows: Sequence[Any]) -> tuple[npt.NDArray[Any], list[Longs]]:
    """Concatenated rows: their numbers, and the boundaries of the lists, innermost lists first."""
    if not isinstance(rows[0], NumberLists):
        return np.concatenate(rows), [_ends([len(row) for row in rows])]
    counts = np.concatenate([row.counts for row in rows])
    return np.concatenate([row.values for row in rows]), [_ends(counts), _ends([len(row.counts) for row in rows])]


def _ends(lengths: Any) -> Longs:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _values(flat: Any) -> npt.NDArray[Any]:
    """The numbers; where some are missing, the array holds objects, which no caller mistakes for numbers."""
    if flat.null_count:
        return np.array(flat.to_pylist(), object)
    flat = flat.cast("uint8") if str(flat.type) == "bool" else flat
    return view(flat, flat.type.to_pandas_dtype())


def view(array: Any, dtype: Any) -> npt.NDArray[Any]:
    """The numbers of an Arrow array without missing ones, not copied; to_numpy imports pandas, half a second."""
    if not len(array):
        return np.zeros(0, dtype)
    return np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * np.dtype(dtype).itemsize)


def _is_present(lists: Any) -> npt.NDArray[np.bool_]:
    """Which lists are there at all."""
    return view(lists.is_valid().cast("uint8"), np.uint8).astype(bool)


def list_lengths(lists: Any) -> Longs:
    """The length of every list, 0 where none is."""
    name = _kind(lists.type)
    if name == "fixed_size_list":
        return _is_present(lists).astype(np.int64) * int(lists.type.list_size)
    offsets = view(lists.offsets, np.int64 if name == "large_list" else np.int32)
    starts = offsets.astype(np.int64)
    lengths: Longs = starts[1:] - starts[:-1]
    return np.where(_is_present(lists), lengths, 0) if lists.null_count else lengths
