"""Orders: the sequence at each position of an endless series of epochs, as a function of (seed, position) alone.

In: a cache, a seed, the name of an order. Out: an `Ordering`. `entropy` and `length` sort each epoch, ascending;
ties are shuffled in every epoch.
"""

from collections.abc import Sequence
from typing import Protocol, assert_never, final

import numpy as np
import numpy.typing as npt

from kdpipe.cache.order import SequenceOrder
from kdpipe.cache.reader import Cache
from kdpipe.schemas.choices import OrderName
from kdpipe.schemas.errors import ConfigError, Incompatible

Longs = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


class Ordering(Protocol):
    """Sequence numbers by position; an epoch has len() positions."""

    def __len__(self) -> int: ...

    def at(self, positions: npt.ArrayLike) -> Longs: ...


def ordering(cache: Cache, name: OrderName, seed: int) -> Ordering:
    """Create an order; `entropy` scans the whole cache once."""
    if not len(cache):
        raise ConfigError(f"{cache.url} has no sequences" + (f" in {cache.split_name}" if cache.split_name else ""))
    shuffled = SequenceOrder(cache.sequences_by_part, seed)
    match name:
        case "shuffled":
            return shuffled
        case "entropy":
            return Ascending(shuffled, mean_entropies(cache))
        case "length":
            return Ascending(shuffled, cache.lengths().astype(np.float64))
        case _:
            assert_never(name)


@final
class Ascending:
    """Sequences in ascending order of a key; NaN last, ties shuffled."""

    def __init__(self, shuffled: SequenceOrder, keys: Doubles) -> None:
        self._shuffled, self._keys = shuffled, keys
        self._epoch: tuple[int, Longs] | None = None

    def __len__(self) -> int:
        return len(self._shuffled)

    def at(self, positions: npt.ArrayLike) -> Longs:
        positions = np.asarray(positions, np.int64)
        epochs, places = np.divmod(positions, len(self))
        sequences = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            sequences[chosen] = self._in_epoch(epoch)[places[chosen]]
        return sequences

    def _in_epoch(self, epoch: int) -> Longs:
        """All sequences of an epoch in order; caches the last epoch."""
        cached = self._epoch
        if cached is None or cached[0] != epoch:
            n = len(self)
            shuffled = self._shuffled.at(np.arange(epoch * n, (epoch + 1) * n))
            cached = (epoch, shuffled[np.argsort(self._keys[shuffled], kind="stable")])
            self._epoch = cached
        return cached[1]


def mean_entropies(cache: Cache) -> Doubles:
    """The teacher's mean entropy over each sequence's trained rows; NaN without rows."""
    means = np.full(len(cache), np.nan)
    starts = np.concatenate([[0], np.cumsum(cache.lengths())])
    first = 0
    for rows in cache.scan():
        if rows.entropy is None:
            raise Incompatible(
                f"{cache.url} does not contain the teacher's entropy, which the order entropy needs",
                hint="use --set run.order=shuffled or run.order=length",
            )
        end = int(np.searchsorted(starts, starts[first] + len(rows)))
        sequence = np.repeat(np.arange(end - first), np.diff(starts[first : end + 1]))[rows.loss_mask]
        sums = np.bincount(sequence, rows.entropy[rows.loss_mask].astype(np.float64), minlength=end - first)
        with np.errstate(invalid="ignore"):
            means[first:end] = sums / np.bincount(sequence, minlength=end - first)
        first = end
    return means


@final
class FixedOrder:
    """A fixed list of sequences, repeated."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = np.asarray(numbers, np.int64)

    def __len__(self) -> int:
        return len(self._numbers)

    def at(self, positions: npt.ArrayLike) -> Longs:
        return self._numbers[np.asarray(positions, np.int64) % len(self)]
