"""Random words are those of splitmix64, follow from their place alone, and are even."""

import numpy as np
import pytest
import torch

from kdpipe.pipeline.targets.draws import below, key_of, row_keys, words
from support.dense_twin import chi_square_deviation

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(x: int) -> int:
    """The finalizer of splitmix64, in whole numbers of Python."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def test_words_are_those_of_the_reference_generator() -> None:
    # The first numbers of splitmix64.c by Sebastiano Vigna from state 0.
    found = words(torch.zeros(1, dtype=torch.int64), torch.arange(3))
    assert [x & MASK for x in found.tolist()] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@pytest.mark.parametrize("seed", [0, 7, (1 << 63) - 1])
def test_keys_and_words_are_those_of_whole_numbers_without_bounds(seed: int) -> None:
    key = 0
    for word in (seed, 1, 12345):
        key = mix((key + GOLDEN + word) & MASK)
    expected = [mix((key + GOLDEN + position) & MASK) for position in range(40, 60)]
    keys = row_keys(seed, "validation", 12345, 40, 20)
    assert [x & MASK for x in keys.tolist()] == expected
    found = words(keys[:, None], torch.arange(5))
    assert [[x & MASK for x in row] for row in found.tolist()] == [
        [mix((x + (counter + 1) * GOLDEN) & MASK) for counter in range(5)] for x in expected
    ]
    bounds = torch.tensor([1, 2, 1000, (1 << 53) - 1])
    drawn = below(keys[:, None], torch.zeros(1, dtype=torch.int64), bounds)
    assert drawn.tolist() == [
        [min(int((mix((x + GOLDEN) & MASK) >> 11) * 2.0**-53 * bound), bound - 1) for bound in bounds.tolist()]
        for x in expected
    ]


def test_a_bound_that_differs_by_a_little_gives_nearly_the_same_integer() -> None:
    keys, zero = row_keys(0, "train", 0, 0, 1000), torch.zeros(1, dtype=torch.int64)
    bound = torch.tensor(10**11)
    assert int((below(keys, zero, bound) - below(keys, zero, bound + 1000)).abs().max()) <= 1001


def test_a_row_has_its_key_wherever_a_piece_begins() -> None:
    whole = row_keys(3, "train", 8, 0, 50)
    assert torch.equal(row_keys(3, "train", 8, 20, 5), whole[20:25])
    assert row_keys(3, "train", 8, 0, 0).shape == (0,)


def test_no_two_rows_share_a_key() -> None:
    places = [(seed, split, doc) for seed in (0, 1) for split in ("train", "validation") for doc in range(200)]
    keys = torch.cat([row_keys(seed, split, doc, 0, 100) for seed, split, doc in places])  # type: ignore[arg-type]  # names of splits
    assert len(keys.unique()) == len(keys)
    assert key_of(1, 2) != key_of(2, 1)


def test_integers_below_a_bound_are_even() -> None:
    keys = row_keys(0, "train", 0, 0, 5000)[:, None]
    drawn = below(keys, torch.arange(20), torch.tensor(97)).numpy()
    counts = np.bincount(drawn.ravel(), minlength=97)
    assert abs(chi_square_deviation(counts, np.full(97, drawn.size / 97))) < 4
    pairs = np.bincount((drawn[:, :-1] % 10 * 10 + drawn[:, 1:] % 10).ravel(), minlength=100)
    even = np.bincount(np.arange(97) % 10, minlength=10) / 97
    assert chi_square_deviation(pairs, np.outer(even, even).ravel() * pairs.sum()) < 4
