"""Tables as pandas DataFrames; pandas is imported on use."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from kdpipe.cache.format.rows import Ints, Rows
from kdpipe.schemas.errors import ConfigError, UsageError, nearest_name

# Scalars per row, and lists of one value per stored id.
SCALARS = ("log_tail", "entropy", "label_logprob", "boundary_logprob")
LISTS = ("ids", "logprobs", "weights", "times")
Column = Callable[[], Iterable[Any]]


def data_frame(columns: Any) -> Any:
    """A DataFrame of columns or records."""
    try:
        import pandas
    except ImportError:
        raise UsageError("pandas is not installed", hint="pip install 'kdpipe[pandas]'") from None
    return pandas.DataFrame(columns)


def rows_frame(
    sequences: Iterable[Rows],
    columns: Sequence[str] | None,
    limit: int | None,
    decode: Callable[[Ints], str] | None,
) -> Any:
    """A DataFrame with a line per row of the sequences, at most `limit`; text only with `decode`."""
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}, expected at least 1", hint="limit=None reads everything")
    names = columns
    table: dict[str, list[Any]] = {name: [] for name in names or ()}
    n_left = limit
    for number, rows in enumerate(sequences):
        n = len(rows) if n_left is None else min(n_left, len(rows))
        available = _columns(number, rows, n, decode)
        if names is None:
            names = list(available)
            table = {name: [] for name in names}
        for name in names:
            if name not in available:
                raise _unknown_column(name, list(available))
            table[name].extend(available[name]())
        if n_left is not None and (n_left := n_left - n) == 0:
            break
    return data_frame(table)


def _columns(number: int, rows: Rows, n: int, decode: Callable[[Ints], str] | None) -> dict[str, Column]:
    """The columns of the first n rows of a sequence that the cache stores."""
    ends = np.cumsum(rows.count[:n])
    bounds = list(zip((ends - rows.count[:n]).tolist(), ends.tolist(), strict=True))
    documents = rows.documents[np.searchsorted(rows.document_starts, np.arange(n), side="right") - 1]
    columns: dict[str, Column] = {
        "sequence": partial(np.full, n, number),
        "document": partial(_unchanged, documents),
        "token": partial(_unchanged, rows.tokens[:n]),
    }
    if decode is not None:
        columns["text"] = partial(_token_texts, rows.tokens[:n], decode)
    columns |= {name: partial(_unchanged, getattr(rows, name)[:n]) for name in ("loss_mask", "count", "n_exact")}
    for name in LISTS:
        if (values := getattr(rows, name)) is not None:
            columns[name] = partial(_slices, values, bounds)
    scalars = {name: getattr(rows, name) for name in SCALARS} | {f"log_z.{t:g}": z for t, z in rows.log_z.items()}
    return columns | {name: partial(_unchanged, z[:n]) for name, z in scalars.items() if z is not None}


def _unchanged(values: Any) -> Any:
    return values


def _slices(values: Any, bounds: Iterable[tuple[int, int]]) -> list[Any]:
    return [values[start:end] for start, end in bounds]


def _token_texts(tokens: Ints, decode: Callable[[Ints], str]) -> list[str]:
    unique, places = np.unique(tokens, return_inverse=True)
    texts = [decode(unique[i : i + 1]) for i in range(len(unique))]
    return [texts[place] for place in places]


def _unknown_column(name: str, names: Sequence[str]) -> ConfigError:
    near = nearest_name(name, names)
    shown = f": the nearest is {near!r}" if near else ""
    return ConfigError(f"no column {name!r}{shown}", hint=f"columns: {', '.join(names)}", nearest=near)
