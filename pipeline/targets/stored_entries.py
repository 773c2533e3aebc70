"""Stored entries of rows, from which a smaller target of the same kind is chosen.

In: the weights of every row's entries, exact ids first. Out: an `EntryChoice`. Entries are drawn in proportion to their
weights, whose expectation is the teacher's probability; hence so is that of the new ones.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Longs = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedEntries:
    """R rows of up to K entries: exact ids in stored order, then draws, then padding with arbitrary values.

    `weights` are the training weights, `order` sorts a row's draws, `times` counts how often each was drawn.
    """

    n_exact_R: Longs
    n_draws_R: Longs
    weights_RK: Doubles
    order_RK: Longs
    times_RK: Longs

    @property
    def counts(self) -> Longs:
        return self.n_exact_R + self.n_draws_R


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryChoice:
    """Slots of the entries that stay: `n_exact` exact ones, then draws, then padding with arbitrary values."""

    n_exact_R: Longs
    n_draws_R: Longs
    slots_RK: Longs
    times_RK: Longs


def keep_first(entries: PaddedEntries, n_R: Longs) -> EntryChoice:
    """Keep the first `n_R` exact ids, and no draws."""
    return EntryChoice(
        n_exact_R=n_R,
        n_draws_R=np.zeros_like(n_R),
        slots_RK=slots(entries),
        times_RK=np.zeros(entries.weights_RK.shape, np.int64),
    )


def slots(entries: PaddedEntries) -> Longs:
    """The number of each slot in its row."""
    n_rows, width = entries.weights_RK.shape
    return np.broadcast_to(np.arange(width), (n_rows, width))
