"""The plan: every document in one part, parts of even size, none with more rows than a part may have."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdpipe.pipeline.data import parts
from kdpipe.pipeline.data.index import MORE_TOKENS
from kdpipe.pipeline.data.parts import LEAST_ROWS, MOST_ROWS, make_plan
from kdpipe.schemas.plan import MAX_PART_ROWS, Plan


def plan(sizes: list[int], tokens_per_byte: float = 0.25, validation: list[int] | None = None) -> Plan:
    return make_plan(
        {"train": np.array(sizes, np.uint32), "validation": np.array(validation or [], np.uint32)},
        tokens_per_byte,
        2048,
        True,
    )


@given(st.lists(st.integers(1, 1 << 21), min_size=1, max_size=200), st.floats(0.01, 1.0))
def test_parts_cover_all_documents_and_none_is_too_large(sizes: list[int], tokens_per_byte: float) -> None:
    (split,) = plan(sizes, tokens_per_byte).splits
    assert (split.bounds[0], split.bounds[-1]) == (0, len(sizes))
    for first, end in zip(split.bounds, split.bounds[1:], strict=False):
        assert sum(size + MORE_TOKENS for size in sizes[first:end]) <= MAX_PART_ROWS


def rows_of_parts(sizes: list[int], tokens_per_byte: float) -> list[float]:
    (split,) = plan(sizes, tokens_per_byte).splits
    each = np.array(sizes) * tokens_per_byte + 1
    return [float(each[first:end].sum()) for first, end in zip(split.bounds, split.bounds[1:], strict=False)]


@pytest.mark.parametrize(
    ("n", "n_parts", "rows"),
    [(40, 1, 12_000), (1000, 9, LEAST_ROWS), (20_000, 64, 94_000), (400_000, 115, MOST_ROWS)],
)
def test_parts_are_about_a_64th_within_bounds(n: int, n_parts: int, rows: int) -> None:
    found = rows_of_parts([1000] * n, 0.3)
    assert len(found) == n_parts
    assert max(found) - min(found) <= 301
    assert abs(np.mean(found) - rows) < 0.06 * rows


def test_parts_of_uneven_documents_are_of_even_size() -> None:
    sizes = np.random.default_rng(0).lognormal(7, 1, 20_000).astype(int).clip(1, 1 << 20).tolist()
    found = rows_of_parts(sizes, 0.25)
    assert max(found) < 1.2 * float(np.mean(found))


def test_a_part_that_may_overflow_is_closed_early() -> None:
    (split,) = plan([1 << 21] * 8, 0.01).splits
    assert split.bounds == tuple(range(9))


def test_each_split_has_parts_of_its_own_and_an_empty_one_none() -> None:
    made = plan([100] * 10, validation=[100] * 2)
    assert [(split.name, split.bounds) for split in made.splits] == [("train", (0, 10)), ("validation", (0, 2))]
    assert [split.name for split in plan([100] * 10).splits] == ["train"]
    assert (made.sequence_length, made.packed) == (2048, True)


def test_many_small_documents_are_planned_in_an_instant() -> None:
    made = make_plan({"train": np.full(2_000_000, 500, np.uint32)}, 0.25, 2048, True)
    assert made.n_parts == pytest.approx(parts.PARTS * 252e6 / (parts.PARTS * MOST_ROWS), rel=0.05)


def test_a_person_may_say_how_large_parts_are() -> None:
    sizes = {"train": np.full(1000, 1000, np.uint32)}
    assert make_plan(sizes, 0.25, 2048, True, 2510).n_parts == 100


def test_parts_of_documents_that_are_cut_are_as_large_as_those_of_short_ones() -> None:
    short, long = {"train": np.full(4000, 400, np.uint32)}, {"train": np.full(4000, 80_000, np.uint32)}
    assert make_plan(long, 0.25, 101, True, 10_000, 101).splits == make_plan(short, 0.25, 101, True, 10_000).splits
    # A document of which 100 tokens are read may be as large as it likes: the bound is on what is read.
    huge = {"train": np.full(100, 1 << 21, np.uint32)}
    assert make_plan(huge, 0.25, 100, True, 10_000, 100).n_parts == 1
