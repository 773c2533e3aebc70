"""Counter-based random numbers: they depend on seed and row alone, not on batch, order or device.

In: a seed, the place of a row in the data, a counter. Out: 64-bit words as int64 tensors. A word is the finalizer of
splitmix64 (Steele, Lea and Flood 2014) of key + (counter + 1) * GOLDEN, modulo 2^64.
"""

from typing import get_args

import torch
from torch import Tensor

from kdpipe.schemas.choices import SplitName

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)
_SPLITS = get_args(SplitName)


def row_keys(seed: int, split: SplitName, document: int, first_position: int, n: int) -> Tensor:
    """The keys of n rows of a document, from a given position."""
    key = key_of(seed, _SPLITS.index(split), document)
    return mixed(key + GOLDEN + torch.arange(first_position, first_position + n))


def key_of(*words: int) -> Tensor:
    """One key from several numbers, each below 2^63, in order."""
    key = torch.zeros((), dtype=torch.int64)
    for word in words:
        key = mixed(key + GOLDEN + word)
    return key


def words(keys: Tensor, counters: Tensor) -> Tensor:
    """The word of each key at each counter, broadcast against each other."""
    return mixed(keys + (counters + 1) * GOLDEN)


def below(keys: Tensor, counters: Tensor, bounds: Tensor) -> Tensor:
    """Integers from 0 to below a bound of at most 2^53: the bound times a number from 0 to 1 from the key.

    A slightly different bound, as from another batch shape, gives nearly the same integer.
    """
    share = _shifted(words(keys, counters), 11).double() * 2.0**-53
    return torch.minimum((share * bounds).long(), bounds - 1)


def mixed(x: Tensor) -> Tensor:
    """The finalizer of splitmix64."""
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """Logical right shift: int64 shifts in copies of the sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)
