"""The plan: every document in one part, parts of even size, none with more rows than a part may have."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdpipe.pipeline.documents.corpus_index import ADDED_TOKENS
from kdpipe.pipeline.documents.part_plan import LARGE_ROWS, MANY_ROWS, MIN_PART_ROWS, make_plan, rows_per_part
from kdpipe.schemas.cache_plan import MAX_PART_ROWS, CachePlan


def plan(sizes: list[int], tokens_per_byte: float = 0.25, validation: list[int] | None = None) -> CachePlan:
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
        assert sum(size + ADDED_TOKENS for size in sizes[first:end]) <= MAX_PART_ROWS


def rows_of_parts(sizes: list[int], tokens_per_byte: float) -> list[float]:
    (split,) = plan(sizes, tokens_per_byte).splits
    each = np.array(sizes) * tokens_per_byte + 1
    return [float(each[first:end].sum()) for first, end in zip(split.bounds, split.bounds[1:], strict=False)]


@pytest.mark.parametrize(
    ("n", "n_parts", "rows"),
    [(40, 1, 12_000), (1000, 9, MIN_PART_ROWS), (20_000, 64, 94_000), (55_000, 64, 259_000), (400_000, 46, LARGE_ROWS)],
)
def test_parts_are_about_a_64th_or_large_ones_of_many_rows(n: int, n_parts: int, rows: int) -> None:
    found = rows_of_parts([1000] * n, 0.3)
    assert len(found) == n_parts
    assert max(found) - min(found) <= 301
    assert abs(np.mean(found) - rows) < 0.06 * rows


def test_parts_of_uneven_documents_are_of_even_size() -> None:
    sizes = np.random.default_rng(0).lognormal(7, 1, 20_000).astype(int).clip(1, 1 << 20).tolist()
    found = rows_of_parts(sizes, 0.25)
    assert max(found) < 1.2 * float(np.mean(found))


def test_a_part_that_may_overflow_is_closed_early() -> None:
    (split,) = plan([1 << 21] * 903, 0.01).splits
    assert split.bounds == tuple(range(0, 904, 7))
    assert 7 * ((1 << 21) + ADDED_TOKENS) <= MAX_PART_ROWS < 8 * (1 << 21) + 1


# What the standard profile takes of a position, file by file: ids, row columns (counts 0.9, three scalars 4.7, tokens,
# mask and byte lengths 2.1), values, and sequences.arrow with documents of 300 tokens (benchmarks/transfer.py files).
ID_BYTES, ROW_BYTES, VALUE_BYTES, PLACE_BYTES = 15.6, 7.7, 2.0, 0.45
LARGE_FILE = 16_000_000


def share_in_large_files(rows: list[float]) -> float:
    """The share of all bytes in files of 16 MB or more, for parts of these numbers of positions."""
    files = [n * each for n in rows for each in (ID_BYTES, ROW_BYTES, VALUE_BYTES, PLACE_BYTES)]
    return sum(size for size in files if size >= LARGE_FILE) / sum(files)


@pytest.mark.parametrize("millions", [20, 21, 23, 26, 33, 50, 100, 777])
@pytest.mark.parametrize("tokens_per_byte", [0.21, 0.25, 0.35])
def test_from_20_million_positions_on_most_bytes_are_in_large_files(millions: int, tokens_per_byte: float) -> None:
    n = round(millions * 1e6 / (2000 * tokens_per_byte))
    assert share_in_large_files(rows_of_parts([2000] * n, tokens_per_byte)) > 0.9


@pytest.mark.parametrize("guess", [0.86, 1.0, 1.1])
def test_an_estimate_that_is_wrong_by_a_tenth_makes_no_small_files(guess: float) -> None:
    """Bytes tell how many tokens there will be only about: 20 million positions that were planned as fewer or more."""
    planned = rows_of_parts([2000] * round(20e6 * guess / 500), 0.25)
    assert share_in_large_files([rows / guess for rows in planned]) > 0.9


def test_parts_of_smaller_caches_have_a_64th_of_the_rows() -> None:
    for n in (1, 32_768, 2_097_152, 3_000_000, 16_777_215):
        assert rows_per_part(n) == min(max(n / 64, 1 << 15), 1 << 20)
    assert rows_per_part(MANY_ROWS) == LARGE_ROWS


def test_each_split_has_parts_of_its_own_and_an_empty_one_none() -> None:
    made = plan([100] * 10, validation=[100] * 2)
    assert [(split.name, split.bounds) for split in made.splits] == [("train", (0, 10)), ("validation", (0, 2))]
    assert [split.name for split in plan([100] * 10).splits] == ["train"]
    assert (made.sequence_length, made.packed) == (2048, True)


def test_many_small_documents_are_planned_in_an_instant() -> None:
    made = make_plan({"train": np.full(2_000_000, 500, np.uint32)}, 0.25, 2048, True)
    assert made.n_parts == pytest.approx(252e6 / LARGE_ROWS, rel=0.05)


def test_the_size_of_parts_can_be_given() -> None:
    sizes = {"train": np.full(1000, 1000, np.uint32)}
    assert make_plan(sizes, 0.25, 2048, True, 2510).n_parts == 100


def test_parts_of_documents_that_are_cut_are_as_large_as_those_of_short_ones() -> None:
    short, long = {"train": np.full(4000, 400, np.uint32)}, {"train": np.full(4000, 80_000, np.uint32)}
    assert make_plan(long, 0.25, 101, True, 10_000, 101).splits == make_plan(short, 0.25, 101, True, 10_000).splits
    # A document of which 100 tokens are read may be as large as it likes: the bound is on what is read.
    huge = {"train": np.full(100, 1 << 21, np.uint32)}
    assert make_plan(huge, 0.25, 100, True, 10_000, 100).n_parts == 1
