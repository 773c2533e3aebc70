"""The columns of a source row as numpy arrays, from Parquet or from a line of JSON.

In: a row's columns. Out: arrays of int64, bool or float64, flat or as one list per token; or a `BadRow` that names the
column and the problem.
"""

import re
from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.cache.format.number_lists import EntryLists, NumberLists
from kdpipe.pipeline.documents.columns import BadRow

Columns = Mapping[str, Any]
TOKEN_ID = re.compile(r"^token_id:([0-9]{1,9})$")
Longs = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def integers(columns: Columns, name: str) -> Longs:
    """A column with a list of integers."""
    return _integers(_flat(columns, name), name)


def numbers(columns: Columns, name: str) -> Floats:
    """A column with a list of numbers."""
    return _float(_flat(columns, name), name)


def booleans(columns: Columns, name: str) -> Bools:
    """A column with a list of 0 and 1, or of false and true."""
    values = _float(_flat(columns, name), name)
    if not ((values == 0) | (values == 1)).all():
        raise BadRow(f"{name} contains {values[(values != 0) & (values != 1)][0]}, expected 0 or 1")
    flags: Bools = values == 1
    return flags


def lists_of_integers(columns: Columns, name: str) -> NumberLists:
    """A column with one list of integers per token."""
    lists = _lists(columns, name)
    return NumberLists(_integers(lists.values, name), lists.counts)


def lists_of_numbers(columns: Columns, name: str) -> NumberLists:
    """A column with one list of numbers per token."""
    lists = _lists(columns, name)
    return NumberLists(_float(lists.values, name), lists.counts)


def entries(columns: Columns, name: str) -> tuple[NumberLists, NumberLists]:
    """Ids and log p from a column with, per token, a list of {"token": "token_id:N", "logprob": x}."""
    value = _value(columns, name)
    if not isinstance(value, EntryLists):
        value = _entries(value, name)
    ids = []
    for token in value.tokens:
        match = TOKEN_ID.match(token) if isinstance(token, str) else None
        if match is None:
            raise BadRow(f"{name} contains the token {token!r:.60}, expected token_id:N")
        ids.append(int(match[1]))
    return (
        NumberLists(np.array(ids, np.int64), value.counts),
        NumberLists(_float(_array(value.logprobs, name), name), value.counts),
    )


def _entries(value: Any, name: str) -> EntryLists:
    """Entries from a row of JSON."""
    if not isinstance(value, list) or not all(item is None or isinstance(item, list) for item in value):
        raise BadRow(f"{name} is not a list of lists of objects with token and logprob")
    flat = [entry for item in value for entry in item or ()]
    if not all(isinstance(entry, dict) and {"token", "logprob"} <= entry.keys() for entry in flat):
        raise BadRow(f"{name} contains a value that is not an object with token and logprob")
    counts = np.array([len(item or ()) for item in value], np.int64)
    return EntryLists([e["token"] for e in flat], _array([e["logprob"] for e in flat], name), counts)


def same_counts(first: NumberLists, second: NumberLists, names: tuple[str, str]) -> None:
    """Refuse two columns whose lists differ in length."""
    if len(first.counts) != len(second.counts):
        raise BadRow(f"{names[0]} has {len(first.counts):,} lists, {names[1]} has {len(second.counts):,}")
    differing = first.counts != second.counts
    if differing.any():
        token = int(differing.argmax())
        raise BadRow(
            f"list {token} has {first.counts[token]:,} numbers in {names[0]} and {second.counts[token]:,} in {names[1]}"
        )


def _value(columns: Columns, name: str) -> Any:
    if name not in columns:
        raise BadRow(f"no column {name}; columns: {', '.join(sorted(map(str, columns))[:12]) or 'none'}")
    if columns[name] is None:
        raise BadRow(f"{name} is empty")
    return columns[name]


def _flat(columns: Columns, name: str) -> npt.NDArray[Any]:
    value = _value(columns, name)
    if isinstance(value, NumberLists | EntryLists) or not isinstance(value, list | np.ndarray):
        raise BadRow(f"{name} is not a list of numbers")
    return _array(value, name)


def _lists(columns: Columns, name: str) -> NumberLists:
    value = _value(columns, name)
    if isinstance(value, NumberLists):
        return value
    if isinstance(value, EntryLists):
        raise BadRow(f"{name} contains objects with token and logprob, expected lists of numbers")
    if not isinstance(value, list) or not all(item is None or isinstance(item, list) for item in value):
        raise BadRow(f"{name} is not a list of lists of numbers")
    counts = np.array([len(item or ()) for item in value], np.int64)
    return NumberLists(_array(list(chain.from_iterable(item or () for item in value)), name), counts)


def _array(values: Any, name: str) -> npt.NDArray[Any]:
    """Numbers as an array, never of dtype object."""
    if isinstance(values, list):
        if not set(map(type, values)) <= {int, float, bool}:
            raise BadRow(f"{name} contains a value that is not a number")
        try:
            values = np.array(values) if values else np.zeros(0, np.int64)
        except OverflowError:
            raise BadRow(f"{name} contains a number that is too large") from None
    if values.dtype.kind not in "biuf":
        raise BadRow(f"{name} contains a value that is not a number")
    array: npt.NDArray[Any] = values
    return array


def _integers(values: npt.NDArray[Any], name: str) -> Longs:
    if values.dtype.kind not in "iu":
        if len(values):
            raise BadRow(f"{name} contains {values[0]!s}, expected integers")
        return np.zeros(0, np.int64)
    if values.dtype == np.uint64 and (values > np.iinfo(np.int64).max).any():
        raise BadRow(f"{name} contains {int(values.max())}, which does not fit into 64 bits")
    return values.astype(np.int64)


def _float(values: npt.NDArray[Any], name: str) -> Floats:
    return values.astype(np.float64)
