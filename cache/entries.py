"""Ragged entries: where each row's begin, which are draws, and differences within rows.

In: counts a row. Out: masks, starts, and running differences that wrap around in 32 bits.
Before it: nothing. After it: `checks.py`, `encode.py` and `decode.py` share these few lines.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdpipe.cache.laws import Codes

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


def entry_places(n_exact: Longs, n_draws: Longs) -> tuple[Longs, Longs]:
    """Where the exact ids and where the draws stand among the flat entries."""
    exact_ends, draw_ends = np.cumsum(n_exact), np.cumsum(n_draws)
    exact = np.arange(exact_ends[-1] if len(exact_ends) else 0) + np.repeat(draw_ends - n_draws, n_exact)
    draws = np.arange(draw_ends[-1] if len(draw_ends) else 0) + np.repeat(exact_ends, n_draws)
    return exact, draws


def row_starts(counts: Longs) -> Longs:
    """Where each row begins in a flat array."""
    return np.cumsum(counts, dtype=np.int64) - counts


def differences(codes: Codes, counts: Longs) -> Codes:
    """Each code less the one before it in its row; the first of a row stays."""
    result = codes.copy()
    result[1:] -= codes[:-1]
    starts = row_starts(counts)[counts > 0]
    result[starts] = codes[starts]
    return result


def undo_differences(codes: Codes, counts: Longs) -> Codes:
    """Sums within each row: the inverse of `differences`."""
    before = np.zeros(len(codes) + 1, np.uint32)
    np.cumsum(codes, dtype=np.uint32, out=before[1:])
    return before[1:] - np.repeat(before[row_starts(counts)], counts)
