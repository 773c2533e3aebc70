"""The order of training: a pure function of (seed, position), so that a run resumes from one integer.

In: the number of sequences of each part. Out: the sequence at any position of an endless stream of epochs. Version 1:
parts are permuted, concatenated, cut into windows of blocks, and the blocks of each window are permuted; ranks and
workers take their share of positions and never change the stream.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Final, final

import numpy as np
import numpy.typing as npt

from kdpipe.schemas.errors import ConfigError

ORDER_VERSION: Final = 1
# With 6 rounds the first place of 3 to 6 sequences is visibly uneven over the seeds, with 8 it is not.
ROUNDS = 8
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# A network on halves of b bits permutes 4^b numbers; looked up, since logarithms differ between machines.
_DOMAINS = 4 ** np.arange(1, 31, dtype=np.int64)
Longs = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]


@final
class SequenceOrder:
    """The sequence at each position; `window` is in sequences, a block is `block` neighbors that stay together."""

    def __init__(self, sizes: Sequence[int], seed: int, *, window: int = 8192, block: int = 1) -> None:
        if min(sizes, default=0) < 0 or sum(sizes) < 1 or window < 1 or block < 1:
            raise ConfigError("an order needs at least one sequence, and a window and a block of at least 1")
        self._sizes = np.asarray(sizes, np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)])
        self._seed, self._block = seed, block
        self._window = -(-window // block)
        self._epoch: tuple[int, tuple[Longs, Longs]] | None = None

    def __len__(self) -> int:
        """Sequences of one epoch."""
        return int(self._starts[-1])

    def at(self, positions: npt.ArrayLike) -> Longs:
        """The sequences at some positions; position n * len(order) begins epoch n."""
        wanted = np.asarray(positions, np.int64)
        if (wanted < 0).any():
            raise ConfigError("a position of the order is negative")
        epochs, places = np.divmod(wanted, len(self))
        result = np.empty_like(wanted)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            result[chosen] = self._in_epoch(epoch, places[chosen])
        return result

    def share(self, position: int, count: int, rank: int = 0, world: int = 1) -> Longs:
        """The sequences of one of `world` ranks in the next `count` positions: every world-th."""
        if not 0 <= rank < world:
            raise ConfigError(f"rank {rank} is not one of {world}")
        return self.at(np.arange(position + rank, position + count, world))

    def _in_epoch(self, epoch: int, places: Longs) -> Longs:
        """Permute the blocks of each window, then find the sequence in the permuted parts."""
        parts, starts = self._parts(epoch)
        block, inner = np.divmod(places, self._block)
        # The last block may be short: it stays last, so that every place has its sequence.
        n_whole = len(self) // self._block
        whole = block < n_whole
        window, offset = np.divmod(block[whole], self._window)
        sizes = np.minimum(self._window, n_whole - window * self._window)
        block[whole] = window * self._window + permute(offset, sizes, self._keys(epoch, "window"), window)
        line = block * self._block + inner
        which = np.searchsorted(starts, line, side="right") - 1
        return np.asarray(self._starts[parts[which]] + line - starts[which])

    def _parts(self, epoch: int) -> tuple[Longs, Longs]:
        """The parts of an epoch in order, and where each begins in the stream; cached for the last epoch."""
        kept = self._epoch
        if kept is None or kept[0] != epoch:
            numbers = np.arange(len(self._sizes), dtype=np.uint64)
            parts = np.argsort(_mix(numbers * _GOLDEN + np.uint64(self._keys(epoch, "parts")[0])), kind="stable")
            kept = (epoch, (parts, np.concatenate([[0], np.cumsum(self._sizes[parts])[:-1]])))
            self._epoch = kept
        return kept[1]

    def _keys(self, epoch: int, stage: str) -> list[int]:
        """Eight numbers of 64 bits for a stage of an epoch."""
        text = f"kdpipe order {ORDER_VERSION} {stage} {self._seed} {epoch}"
        digest = hashlib.sha512(text.encode()).digest()
        return [int.from_bytes(digest[8 * n : 8 * n + 8], "little") for n in range(ROUNDS)]


def permute(numbers: Longs, sizes: Longs, keys: list[int], tweak: Longs) -> Longs:
    """A keyed permutation of range(size), another for each tweak: a Feistel network, walked until it lands inside."""
    bits = (np.searchsorted(_DOMAINS, sizes) + 1).astype(np.uint64)
    result = numbers.astype(np.uint64)
    limit, twist = sizes.astype(np.uint64), tweak.astype(np.uint64)
    outside = np.ones(len(result), bool)
    while outside.any():
        result[outside] = _feistel(result[outside], bits[outside], keys, twist[outside])
        outside = result >= limit
    return result.astype(np.int64)


def _feistel(numbers: Words, bits: Words, keys: list[int], tweak: Words) -> Words:
    mask = (np.uint64(1) << bits) - np.uint64(1)
    left, right = numbers >> bits, numbers & mask
    for key in keys:
        left, right = right, left ^ (_mix(right + tweak * _GOLDEN + np.uint64(key)) & mask)
    return (left << bits) | right


def _mix(words: Any) -> Any:
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
