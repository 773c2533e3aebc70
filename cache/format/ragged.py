"""Ragged entries: where each row's begin, which are draws, and differences within rows.

In: counts a row. Out: masks, places, starts, and running differences that wrap around in 32 bits.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.cache.format.quantizers import Codes

Longs = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ragged:
    """How many exact ids and draws each row has, and which of the flat entries are draws."""

    n_exact: Longs
    n_draws: Longs
    counts: Longs
    is_draw: Bools

    @classmethod
    def of(cls, n_exact: npt.ArrayLike, n_draws: npt.ArrayLike) -> "Ragged":
        """From the counts of each row."""
        exact, draws = np.asarray(n_exact, np.int64), np.asarray(n_draws, np.int64)
        return cls(n_exact=exact, n_draws=draws, counts=exact + draws, is_draw=draw_mask(exact, draws))


def draw_mask(n_exact: Longs, n_draws: Longs) -> Bools:
    """Which of the flat entries are draws."""
    runs = np.empty(2 * len(n_exact), np.int64)
    runs[0::2], runs[1::2] = n_exact, n_draws
    kinds = np.zeros(len(runs), bool)
    kinds[1::2] = True
    return np.repeat(kinds, runs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """Rows that have entries of a kind, where each begins among these, and each entry's number among these rows."""

    rows: Longs
    starts: Longs
    number: Longs

    @classmethod
    def of(cls, counts: Longs) -> "Runs":
        """From the counts of each row."""
        rows = counts.nonzero()[0]
        counts = counts.take(rows)
        # A `repeat` costs more than a `take`: this one serves all numbers that entries have from their row.
        number = np.arange(len(counts)).repeat(counts)
        return cls(rows=rows, starts=row_starts(counts), number=number)


def exact_places(exact: Runs, n_draws: Longs) -> Longs:
    """Where the exact ids stand among the flat entries."""
    places = (n_draws.cumsum() - n_draws).take(exact.rows).take(exact.number)
    places += np.arange(len(places))
    return places


def next_tokens(tokens: npt.NDArray[Any], ids: npt.NDArray[Any], n_exact: Longs, n_draws: Longs) -> tuple[Longs, Longs]:
    """The rows whose next token is among their exact ids, and the place of that id among the flat entries."""
    exact = Runs.of(n_exact)
    places = exact_places(exact, n_draws)
    following = np.append(tokens[1:], tokens[:1]).take(exact.rows)
    matches = np.flatnonzero(ids.take(places) == following.take(exact.number))
    return exact.rows.take(exact.number.take(matches)), places.take(matches)


def row_starts(counts: Longs) -> Longs:
    """Where each row begins in a flat array."""
    return counts.cumsum(dtype=np.int64) - counts


def differences(codes: Codes, counts: Longs) -> Codes:
    """Each code less the one before it in its row; the first of a row stays."""
    result = codes.copy()
    result[1:] -= codes[:-1]
    starts = row_starts(counts)[counts > 0]
    result[starts] = codes[starts]
    return result


def undo_differences(codes: Codes, runs: Runs) -> Codes:
    """Sums within each row: the inverse of `differences`."""
    before = _sums_before(codes)
    result = before.take(runs.starts).take(runs.number)
    return np.subtract(before[1:], result, out=result)


def undo_differences_of_draws(codes: Codes, n_exact: Longs, n_draws: Longs) -> Codes:
    """Sums within the draws of each row; where exact ids stand, the result means nothing."""
    before = _sums_before(codes)
    counts = n_exact + n_draws
    result = before.take(row_starts(counts) + n_exact).repeat(counts)
    return np.subtract(before[1:], result, out=result)


def _sums_before(codes: Codes) -> Codes:
    """The sum of all codes before each, and of all."""
    before = np.empty(len(codes) + 1, np.uint32)
    before[0] = 0
    codes.cumsum(dtype=np.uint32, out=before[1:])
    return before
