"""The columns of a source row as numpy arrays, whether they came from Parquet or from a line of JSON.

In: a row's columns. Out: arrays of whole numbers, of truth values or of float64, flat or list by list; or a `BadRow`
that says which column is wrong and how.
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


def whole_numbers(columns: Columns, name: str) -> Longs:
    """A column that holds a list of whole numbers."""
    return _whole(_flat(columns, name), name)


def numbers(columns: Columns, name: str) -> Floats:
    """A column that holds a list of numbers."""
    return _float(_flat(columns, name), name)


def truths(columns: Columns, name: str) -> Bools:
    """A column that holds a list of 0 and 1, or of false and true."""
    values = _float(_flat(columns, name), name)
    if not ((values == 0) | (values == 1)).all():
        raise BadRow(f"{name} holds {_first(values, (values != 0) & (values != 1))}, 0 and 1 were expected")
    found: Bools = values == 1
    return found


def lists_of_whole_numbers(columns: Columns, name: str) -> NumberLists:
    """A column that holds a list of whole numbers for each token."""
    lists = _lists(columns, name)
    return NumberLists(_whole(lists.values, name), lists.counts)


def lists_of_numbers(columns: Columns, name: str) -> NumberLists:
    """A column that holds a list of numbers for each token."""
    lists = _lists(columns, name)
    return NumberLists(_float(lists.values, name), lists.counts)


def entries(columns: Columns, name: str) -> tuple[NumberLists, NumberLists]:
    """A column that holds, for each token, a list of {"token": "token_id:N", "logprob": x}: ids and log p."""
    value = _value(columns, name)
    if not isinstance(value, EntryLists):
        value = _entries(value, name)
    ids = []
    for token in value.tokens:
        found = TOKEN_ID.match(token) if isinstance(token, str) else None
        if found is None:
            raise BadRow(f"{name} names the token {token!r:.60}, token_id:N was expected")
        ids.append(int(found[1]))
    return (
        NumberLists(np.array(ids, np.int64), value.counts),
        NumberLists(_float(_array(value.logprobs, name), name), value.counts),
    )


def _entries(value: Any, name: str) -> EntryLists:
    """Entries as JSON has them."""
    if not isinstance(value, list) or not all(each is None or isinstance(each, list) for each in value):
        raise BadRow(f"{name} is no list of lists of tokens with their logprob")
    flat = [entry for each in value for entry in each or ()]
    if not all(isinstance(entry, dict) and {"token", "logprob"} <= entry.keys() for entry in flat):
        raise BadRow(f"{name} holds what is no token with its logprob")
    counts = np.array([len(each or ()) for each in value], np.int64)
    return EntryLists([e["token"] for e in flat], _array([e["logprob"] for e in flat], name), counts)


def same_counts(first: NumberLists, second: NumberLists, names: tuple[str, str]) -> None:
    """Refuse two columns of which a token has more in one than in the other."""
    if len(first.counts) != len(second.counts):
        raise BadRow(f"{names[0]} has {len(first.counts):,} lists, {names[1]} has {len(second.counts):,}")
    differing = first.counts != second.counts
    if differing.any():
        token = int(differing.argmax())
        raise BadRow(
            f"list {token} of {names[0]} has {first.counts[token]:,} numbers,"
            f" that of {names[1]} has {second.counts[token]:,}"
        )


def _value(columns: Columns, name: str) -> Any:
    if name not in columns:
        raise BadRow(f"the column {name} is missing: there are {', '.join(sorted(map(str, columns))[:12]) or 'none'}")
    if columns[name] is None:
        raise BadRow(f"{name} is empty")
    return columns[name]


def _flat(columns: Columns, name: str) -> npt.NDArray[Any]:
    value = _value(columns, name)
    if isinstance(value, NumberLists | EntryLists) or not isinstance(value, list | np.ndarray):
        raise BadRow(f"{name} is no list of numbers")
    return _array(value, name)


def _lists(columns: Columns, name: str) -> NumberLists:
    value = _value(columns, name)
    if isinstance(value, NumberLists):
        return value
    if isinstance(value, EntryLists):
        raise BadRow(f"{name} holds tokens with their logprob, lists of numbers were expected")
    if not isinstance(value, list) or not all(each is None or isinstance(each, list) for each in value):
        raise BadRow(f"{name} is no list of lists of numbers")
    counts = np.array([len(each or ()) for each in value], np.int64)
    return NumberLists(_array(list(chain.from_iterable(each or () for each in value)), name), counts)


def _array(values: Any, name: str) -> npt.NDArray[Any]:
    """Numbers as an array; null, text and lists within would become objects."""
    if isinstance(values, list):
        if not set(map(type, values)) <= {int, float, bool}:
            raise BadRow(f"{name} holds what is no number")
        try:
            values = np.array(values) if values else np.zeros(0, np.int64)
        except OverflowError:
            raise BadRow(f"{name} holds a number that is too large") from None
    if values.dtype.kind not in "biuf":
        raise BadRow(f"{name} holds what is no number")
    found: npt.NDArray[Any] = values
    return found


def _whole(values: npt.NDArray[Any], name: str) -> Longs:
    if values.dtype.kind not in "iu":
        if len(values):
            raise BadRow(f"{name} holds {values[0]!s}, whole numbers were expected")
        return np.zeros(0, np.int64)
    if values.dtype == np.uint64 and (values > np.iinfo(np.int64).max).any():
        raise BadRow(f"{name} holds {int(values.max())}")
    return values.astype(np.int64)


def _float(values: npt.NDArray[Any], name: str) -> Floats:
    return values.astype(np.float64)


def _first(values: npt.NDArray[Any], wrong: Bools) -> str:
    return str(values[wrong][0])
