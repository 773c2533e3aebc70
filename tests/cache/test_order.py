"""The order is a pure function of a position: whole epochs, one line for any world, pinned for version 1."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.cache.order import ORDER_VERSION, SequenceOrder, permute
from kdpipe.schemas.errors import ConfigError

quick = settings(max_examples=80, derandomize=True, deadline=None, database=None)
part_sizes = st.lists(st.integers(0, 40), min_size=1, max_size=9).filter(any)
orders = st.builds(
    lambda sizes, seed, window, block: SequenceOrder(sizes, seed, window=window, block=block),
    part_sizes,
    st.integers(0, 2**63 - 1),
    st.integers(1, 120),
    st.integers(1, 12),
)


@quick
@given(order=orders, epoch=st.integers(0, 1000))
def test_every_epoch_names_every_sequence_once(order: SequenceOrder, epoch: int) -> None:
    line = order.at(np.arange(epoch * len(order), (epoch + 1) * len(order)))
    assert sorted(line.tolist()) == list(range(len(order)))


@pytest.mark.parametrize("n_whole", [1, 4, 16, 64])
def test_a_short_last_block_behind_a_full_window_has_its_place(n_whole: int) -> None:
    order = SequenceOrder([3 * n_whole + 2], 0, window=6 * n_whole, block=3)
    line = order.at(range(len(order))).tolist()
    assert sorted(line) == list(range(len(order)))
    assert line[-2:] == [3 * n_whole, 3 * n_whole + 1]


@quick
@given(order=orders, positions=st.lists(st.integers(0, 10**12), max_size=40))
def test_an_answer_does_not_depend_on_earlier_reads(order: SequenceOrder, positions: list[int]) -> None:
    together = order.at(positions).tolist()
    assert [int(order.at(position)) for position in positions] == together
    assert order.at(positions[::-1]).tolist() == together[::-1]


@pytest.mark.slow
@quick
@given(order=orders, begin=st.integers(0, 10**15), count=st.integers(0, 60), world=st.integers(1, 9))
def test_ranks_share_one_line_whatever_their_number(order: SequenceOrder, begin: int, count: int, world: int) -> None:
    line = order.at(np.arange(begin, begin + count))
    shares = [order.share(begin, count, rank, world) for rank in range(world)]
    assert sum(map(len, shares)) == count
    for rank, share in enumerate(shares):
        assert share.tolist() == line[rank::world].tolist()


@pytest.mark.slow
@quick
@given(order=orders, begin=st.integers(0, 500), world=st.integers(1, 4), workers=st.integers(1, 4))
def test_workers_of_ranks_see_the_same_line_step_by_step(
    order: SequenceOrder, begin: int, world: int, workers: int
) -> None:
    per_step = world * workers * 2
    line = order.at(np.arange(begin, begin + 3 * per_step)).tolist()
    seen: list[int] = []
    for step in range(3):
        at = begin + step * per_step
        lanes = [order.share(at, per_step, lane, world * workers).tolist() for lane in range(world * workers)]
        seen += [sequence for row in zip(*lanes, strict=True) for sequence in row]
    assert seen == line


def test_the_order_resumes_from_any_integer() -> None:
    order = SequenceOrder([7, 0, 12, 5], 3, window=9, block=2)
    line = order.at(np.arange(5 * len(order))).tolist()
    for resumed in range(0, 5 * len(order), 7):
        fresh = SequenceOrder([7, 0, 12, 5], 3, window=9, block=2)
        assert fresh.at(np.arange(resumed, 5 * len(order))).tolist() == line[resumed:]


def test_version_1_of_the_order_is_pinned() -> None:
    assert ORDER_VERSION == 1
    order = SequenceOrder([5, 0, 9, 3, 6], 42, window=8, block=2)
    assert order.at(range(23)).tolist() == PINNED_FIRST
    assert order.at(range(7 * 23, 8 * 23)).tolist() == PINNED_EIGHTH
    assert SequenceOrder([1000] * 50, 7).at([0, 1, 8191, 8192, 49_999, 50_000, 10**12]).tolist() == PINNED_LARGE


PINNED_FIRST = [20, 21, 16, 17, 14, 15, 18, 19, 22, 0, 5, 6, 3, 4, 1, 2, 9, 10, 7, 8, 11, 12, 13]
PINNED_EIGHTH = [2, 3, 15, 16, 0, 1, 4, 14, 19, 20, 5, 6, 21, 22, 17, 18, 11, 12, 9, 10, 7, 8, 13]
PINNED_LARGE = [28013, 44601, 10914, 1673, 39377, 18434, 2517]


def test_a_window_is_rounded_up_to_whole_blocks() -> None:
    assert SequenceOrder([5, 0, 9, 3, 6], 42, window=7, block=2).at(range(23)).tolist() == PINNED_FIRST


@pytest.mark.parametrize(("size", "window", "block"), [(10, 40, 1), (100, 64, 8), (7, 30, 3), (50, 20, 20)])
def test_a_window_touches_few_parts(size: int, window: int, block: int) -> None:
    order = SequenceOrder([size] * 40, 5, window=window, block=block)
    whole_window = -(-window // block) * block
    for start in range(0, len(order), whole_window):
        parts = order.at(np.arange(start, min(start + whole_window, len(order)))) // size
        assert len(set(parts.tolist())) <= math.ceil(whole_window / size) + 1


def test_blocks_stay_together_and_parts_do_not_stay_in_place() -> None:
    order = SequenceOrder([16] * 20, 1, window=32, block=4)
    line = order.at(range(len(order))).reshape(-1, 4)
    assert (np.diff(line, axis=1) == 1).all()
    first_window = line[:8].ravel() // 16
    assert len(set(first_window.tolist())) == 2
    assert line.ravel().tolist() != sorted(line.ravel().tolist())
    assert [int(part) for part in dict.fromkeys((line.ravel() // 16).tolist())] != list(range(20))


def test_other_seeds_epochs_and_windows_give_other_lines() -> None:
    sizes = [50, 50]
    lines = [SequenceOrder(sizes, seed).at(range(100)).tolist() for seed in range(5)]
    order = SequenceOrder(sizes, 0)
    lines += [order.at(range(epoch * 100, (epoch + 1) * 100)).tolist() for epoch in range(1, 5)]
    for one, other in itertools.combinations(lines, 2):
        assert sum(a == b for a, b in zip(one, other, strict=True)) < 12
    windows = SequenceOrder([4000], 0, window=100).at(range(4000)).reshape(40, 100) % 100
    assert len({tuple(window) for window in windows.tolist()}) == 40


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "window", "block"), [([3], 8, 1), ([6], 8, 1), ([1] * 5, 1, 1), ([20], 40, 1)])
def test_every_sequence_is_equally_likely_to_come_at_every_place(sizes: list[int], window: int, block: int) -> None:
    n, seeds = sum(sizes), 1500
    lines = np.array([SequenceOrder(sizes, s, window=window, block=block).at(range(n)) for s in range(seeds)])
    expected = seeds / n
    for place in range(n):
        counts = np.bincount(lines[:, place], minlength=n)
        freedom = n - 1
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        # 99.999 % quantile of chi-square by Wilson and Hilferty.
        assert chi_square < freedom * (1 - 2 / (9 * freedom) + 4.27 * math.sqrt(2 / (9 * freedom))) ** 3, place


@pytest.mark.slow
def test_all_orders_of_few_parts_come_up_equally_often() -> None:
    seeds = 2400
    lines = (tuple(SequenceOrder([1] * 4, seed, window=1).at(range(4)).tolist()) for seed in range(seeds))
    counts = Counter(lines)
    expected = seeds / 24
    assert len(counts) == 24
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 68  # 99.999 % of chi-square, 23 free


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 1000, 4096, 4097])
def test_a_permutation_of_any_size_is_one_for_every_tweak(size: int) -> None:
    keys = list(range(1, 9))
    for tweak in (0, 1, 999_999):
        numbers = np.arange(size)
        moved = permute(numbers, np.full(size, size), keys, np.full(size, tweak))
        assert sorted(moved.tolist()) == numbers.tolist()


def test_an_order_of_a_billion_sequences_answers_at_once() -> None:
    order = SequenceOrder([1 << 24] * 75, 0)
    assert len(set(order.at(np.arange(10**15, 10**15 + 1000)).tolist())) == 1000


@pytest.mark.parametrize(
    ("sizes", "options"),
    [([], {}), ([0, 0], {}), ([3, -1], {}), ([3], {"window": 0}), ([3], {"block": 0})],
)
def test_an_order_of_nothing_is_refused(sizes: list[int], options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least one sequence, and a window and a block of at least 1"):
        SequenceOrder(sizes, 0, **options)


def test_invalid_positions_and_ranks_are_refused() -> None:
    order = SequenceOrder([3], 0)
    with pytest.raises(ConfigError, match="is negative"):
        order.at([0, -1])
    for rank, world in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ConfigError, match=f"rank {rank} is not one of {world}"):
            order.share(0, 4, rank, world)
