"""Orders: which sequence stands at a place of the endless line of epochs, as a function of (seed, place) alone.

In: a cache, a seed, the name of an order. Out: an `Ordering`. `entropy` and `length` go up through an epoch, from the
surest or the shortest sequence; equal ones stand as they are shuffled, anew in each epoch.
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
    """The line: `at` says which sequences stand at some places; every len() places an epoch begins."""

    def __len__(self) -> int: ...

    def at(self, positions: npt.ArrayLike) -> Longs:
        """The sequences at some places."""
        ...


def ordering(cache: Cache, name: OrderName, seed: int) -> Ordering:
    """Make an order; `entropy` reads the whole cache once."""
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
    """Sequences by a number, the lowest first; those without one (NaN) last, equal ones as they are shuffled."""

    def __init__(self, shuffled: SequenceOrder, keys: Doubles) -> None:
        self._shuffled, self._keys = shuffled, keys
        self._epoch: tuple[int, Longs] | None = None

    def __len__(self) -> int:
        return len(self._shuffled)

    def at(self, positions: npt.ArrayLike) -> Longs:
        """The sequences at some places."""
        wanted = np.asarray(positions, np.int64)
        epochs, places = np.divmod(wanted, len(self))
        found = np.empty_like(wanted)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            found[chosen] = self._in_epoch(epoch)[places[chosen]]
        return found

    def _in_epoch(self, epoch: int) -> Longs:
        """All sequences of an epoch in their order; the last one asked is kept."""
        kept = self._epoch
        if kept is None or kept[0] != epoch:
            n = len(self)
            line = self._shuffled.at(np.arange(epoch * n, (epoch + 1) * n))
            kept = (epoch, line[np.argsort(self._keys[line], kind="stable")])
            self._epoch = kept
        return kept[1]


def mean_entropies(cache: Cache) -> Doubles:
    """The teacher's mean entropy over the rows of each sequence that are learnt from; NaN where it has none."""
    means = np.full(len(cache), np.nan)
    starts = np.concatenate([[0], np.cumsum(cache.lengths())])
    first = 0
    for rows in cache.scan():
        if rows.entropy is None:
            raise Incompatible(
                f"{cache.url} does not keep the teacher's entropy, by which sequences were to be ordered",
                hint="choose the order shuffled or length",
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
    """Sequences as they are listed, again and again."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = np.asarray(numbers, np.int64)

    def __len__(self) -> int:
        return len(self._numbers)

    def at(self, positions: npt.ArrayLike) -> Longs:
        """The sequences at some places."""
        return self._numbers[np.asarray(positions, np.int64) % len(self)]
