"""Grouping segments into batches: everything once, similar lengths together, within the tokens that were given."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from kdpipe.pipeline.teachers.batching import batches


def texts(*lengths: int) -> list[str]:
    return ["x" * length for length in lengths]


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 200))
def test_every_piece_is_in_one_batch_that_keeps_to_its_tokens(lengths: list[int], batch_tokens: int) -> None:
    groups = batches(texts(*lengths), batch_tokens)
    assert sorted(number for group in groups for number in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) * max(lengths[number] for number in group) <= batch_tokens or len(group) == 1


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 200))
def test_no_two_neighbors_would_have_fitted_into_one(lengths: list[int], batch_tokens: int) -> None:
    groups = batches(texts(*lengths), batch_tokens)
    for left, right in itertools.pairwise(groups):
        assert (len(left) + 1) * lengths[left[0]] > batch_tokens
        assert lengths[left[-1]] >= lengths[right[0]]


def test_the_longest_come_first_and_equal_ones_in_their_order() -> None:
    assert batches(texts(2, 5, 2, 5, 9), 10) == [[4], [1, 3], [0, 2]]


def test_a_piece_longer_than_a_batch_is_read_alone() -> None:
    assert batches(texts(3, 50, 3), 10) == [[1], [0, 2]]


def test_no_pieces_make_no_batches() -> None:
    assert batches([], 10) == []
