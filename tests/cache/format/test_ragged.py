"""Ragged entries against plain loops: which are draws, where rows begin, differences that wrap around."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.cache.format.ragged import (
    Ragged,
    Runs,
    differences,
    draw_mask,
    exact_places,
    row_starts,
    undo_differences,
    undo_differences_of_draws,
)
from support import reference

quick = settings(max_examples=60, derandomize=True, deadline=None, database=None)
counts = st.lists(st.integers(0, 5), max_size=12)
codes = st.one_of(st.integers(0, 2**32 - 1), st.integers(0, 9))


def longs(values: list[int]) -> Any:
    return np.array(values, np.int64)


@quick
@given(data=st.data(), rows=counts)
def test_differences_are_the_twin_s_and_are_undone(data: st.DataObject, rows: list[int]) -> None:
    values = data.draw(st.lists(codes, min_size=sum(rows), max_size=sum(rows)))
    given_codes = np.array(values, np.uint32)
    taken = differences(given_codes, longs(rows))
    assert taken.dtype == np.uint32
    assert taken.tolist() == reference.differences(values, rows)
    np.testing.assert_array_equal(undo_differences(taken, Runs.of(longs(rows))), given_codes)
    assert given_codes.tolist() == values


@quick
@given(pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=12))
def test_draws_stand_behind_the_exact_ids_of_their_row(pairs: list[tuple[int, int]]) -> None:
    n_exact, n_draws = longs([a for a, _ in pairs]), longs([b for _, b in pairs])
    due = [is_draw for a, b in pairs for is_draw in [False] * a + [True] * b]
    assert draw_mask(n_exact, n_draws).tolist() == due
    exact = exact_places(Runs.of(n_exact), n_draws)
    assert exact.tolist() == [place for place, is_draw in enumerate(due) if not is_draw]
    ragged = Ragged.of(n_exact.astype(np.int32), n_draws.astype(np.uint8))
    assert ragged.is_draw.tolist() == due
    assert ragged.counts.tolist() == [a + b for a, b in pairs]


@quick
@given(data=st.data(), pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=12))
def test_differences_of_draws_are_undone_among_exact_ids(data: st.DataObject, pairs: list[tuple[int, int]]) -> None:
    n_exact, n_draws = longs([a for a, _ in pairs]), longs([b for _, b in pairs])
    is_draw = draw_mask(n_exact, n_draws)
    drawn = data.draw(st.lists(codes, min_size=int(is_draw.sum()), max_size=int(is_draw.sum())))
    stream = np.array(data.draw(st.lists(codes, min_size=len(is_draw), max_size=len(is_draw))), np.uint32)
    stream[is_draw] = reference.differences(drawn, n_draws.tolist())
    assert undo_differences_of_draws(stream, n_exact, n_draws)[is_draw].tolist() == drawn


@quick
@given(rows=counts)
def test_runs_are_the_rows_that_have_entries(rows: list[int]) -> None:
    runs = Runs.of(longs(rows))
    assert runs.rows.tolist() == [row for row, count in enumerate(rows) if count]
    assert runs.rows.take(runs.number).tolist() == [row for row, count in enumerate(rows) for _ in range(count)]
    assert runs.starts.tolist() == [sum(rows[:row]) for row in runs.rows.tolist()]


@quick
@given(rows=counts)
def test_a_row_begins_where_those_before_it_end(rows: list[int]) -> None:
    assert row_starts(longs(rows)).tolist() == [sum(rows[:number]) for number in range(len(rows))]


def test_differences_wrap_around_in_32_bits() -> None:
    taken = differences(np.array([5, 2, 2**32 - 1, 0], np.uint32), longs([3, 0, 1]))
    assert taken.tolist() == [5, 2**32 - 3, 2**32 - 3, 0]
