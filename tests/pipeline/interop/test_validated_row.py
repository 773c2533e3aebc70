"""Validated rows: loss mask, tails, padding, scaling, and refusals."""

import math
from typing import Any

import numpy as np
import pytest

from kdpipe.cache.format.number_lists import NumberLists
from kdpipe.pipeline.documents.columns import BadRow
from kdpipe.pipeline.interop.validated_row import SourceRow, ValidatedRow, aligned, validate_row

N_IDS = 10


def lists(values: list[list[Any]], kind: Any) -> NumberLists:
    flat = [value for row in values for value in row]
    return NumberLists(np.array(flat, kind), np.array([len(row) for row in values], np.int64))


def raw(entries: list[dict[int, float]], **changes: Any) -> SourceRow:
    """A source row from one dictionary of id to probability per token."""
    n = len(entries)
    given = {
        "tokens": np.arange(1, n + 1),
        "trained": np.ones(n, bool),
        "ids": lists([list(row) for row in entries], np.int64),
        "values": lists([[math.log(p) if p else -math.inf for p in row.values()] for row in entries], np.float64),
    }
    return SourceRow(**{**given, **changes})


def read(row: SourceRow, *, rest: bool = True) -> ValidatedRow:
    return validate_row(row, N_IDS, rest_is_tail=rest)


def test_the_last_row_of_each_document_has_no_target() -> None:
    entries = [{1: 0.5}, {2: 0.25}, {3: 0.5}, {4: 0.5}]
    found = read(raw(entries, starts=np.array([0, 2])))
    assert found.loss_mask.tolist() == [True, False, True, False]
    assert (found.ids.tolist(), found.counts.tolist()) == ([1, 3], [1, 0, 1, 0])
    assert found.starts.tolist() == [0, 2]


def test_the_tail_is_the_rest_of_one_or_unknown() -> None:
    entries = [{1: 0.5, 2: 0.25}, {3: 1.0}, {}]
    found = read(raw(entries))
    assert found.log_tail is not None
    assert found.log_tail[0] == pytest.approx(math.log(0.25))
    assert found.log_tail[1] == -math.inf
    assert np.isnan(found.log_tail[2])
    assert read(raw(entries), rest=False).log_tail is None


def test_a_stated_tail_is_kept_where_it_fits() -> None:
    entries = [{1: 0.5, 2: 0.25}, {3: 0.5}]
    found = read(raw(entries, log_tail=np.array([math.log(0.251), math.nan])), rest=False)
    assert found.log_tail is not None
    assert found.log_tail[0] == pytest.approx(math.log(0.251))
    with pytest.raises(BadRow, match=r"after token 0.*0\.75.*exp\(-0\.6931\)"):
        read(raw(entries, log_tail=np.log([0.5, 0.5])), rest=False)
    with pytest.raises(BadRow, match="1 tails for 2 tokens"):
        read(raw(entries, log_tail=np.log([0.25])), rest=False)


def test_padding_is_dropped_and_counted() -> None:
    entries = [{1: 0.5, 0: 0.0, 9: 0.0}, {2: 0.0, 3: 0.0}, {1: 0.5}, {4: 0.5}]
    found = read(raw(entries))
    assert (found.counts.tolist(), found.ids.tolist()) == ([1, 0, 1, 0], [1, 1])
    assert found.loss_mask.tolist() == [True, False, True, False]
    assert (found.n_padding, found.n_without_targets, len(found.excess)) == (4, 1, 0)


def test_padding_may_repeat_an_id_and_have_an_unknown_one() -> None:
    row = raw(
        [{1: 0.5}, {}], ids=lists([[1, 99, 99], []], np.int64), values=lists([[-0.5, -1e9, -math.inf], []], float)
    )
    assert read(row).ids.tolist() == [1]


def test_rows_that_are_not_trained_on_have_no_entries() -> None:
    entries = [{1: 0.5, 99: 0.1}, {2: 0.5}, {3: 0.5}]
    found = read(raw(entries, trained=np.array([False, True, True])))
    assert (found.counts.tolist(), found.ids.tolist()) == ([0, 1, 0], [2])
    assert found.n_without_targets == 0


def test_rows_slightly_above_one_are_scaled_to_one_and_counted() -> None:
    found = read(raw([{1: 0.8, 2: 0.22}, {3: 0.9, 4: 0.1000001}, {}]))
    assert np.exp(found.logprobs.astype(float)).tolist() == pytest.approx([0.8 / 1.02, 0.22 / 1.02, 0.9, 0.1], abs=1e-6)
    assert len(found.excess) == 1
    assert found.log_tail is not None
    assert (found.log_tail[:2] < -15).all()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tokens": np.zeros(0, np.int64)}, "no tokens"),
        ({"tokens": np.array([1, 2, 3])}, "2 lists of ids for 3 tokens"),
        ({"trained": np.ones(3, bool)}, "3 loss mask values for 2 tokens"),
        ({"tokens": np.array([1, 10])}, "token 1 is 10, outside the tokenizer's vocabulary of 10"),
        ({"tokens": np.array([-1, 1])}, "token 0 is -1, outside"),
        ({"ids": lists([[1, 10], []], np.int64)}, "after token 0, the id 10 is outside the tokenizer's"),
        ({"ids": lists([[7, 7], []], np.int64)}, "after token 0, duplicate id 7"),
        ({"values": lists([[-1.0, 0.01], []], float)}, "after token 0, a log-probability is 0.01"),
        ({"values": lists([[math.nan, -1.0], []], float)}, "after token 0, a log-probability is nan"),
        ({"values": lists([[-1.0, math.inf], []], float)}, "after token 0, a log-probability is inf"),
        ({"values": lists([[-0.1, -0.2], []], float)}, "after token 0, probabilities add up to 1.724"),
        ({"starts": np.array([0, 0])}, "must ascend from 0 and be below 2"),
        ({"starts": np.array([0, 2])}, "must ascend from 0 and be below 2"),
        ({"starts": np.array([1])}, "must ascend from 0"),
        ({"starts": np.zeros(0, np.int64)}, "must ascend from 0"),
    ],
)  # fmt: skip
def test_an_invalid_row_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(BadRow) as refused:
        read(raw([{1: 0.3, 2: 0.3}, {}], **changes))
    assert named in str(refused.value)


def test_too_many_ids_and_too_many_tokens_are_refused() -> None:
    many = lists([list(range(5000)), []], np.int64)
    row = raw([{}, {}], ids=many, values=lists([[-10.0] * 5000, []], float))
    with pytest.raises(BadRow, match=r"5,000 ids for token 0, at most 4,096"):
        validate_row(row, 6000, rest_is_tail=True)
    with pytest.raises(BadRow, match="4,194,305 tokens, at most 4,194,304"):
        read(raw([{}, {}], tokens=np.zeros((1 << 22) + 1, np.int64)))


def test_there_are_as_many_lists_as_tokens_or_one_less() -> None:
    four = lists([[1], [2, 3], [4], [5]], np.int64)
    assert aligned(four, 4, own=False) is four
    moved = aligned(four, 4, own=True)
    assert (moved.values.tolist(), moved.counts.tolist()) == ([2, 3, 4, 5], [2, 1, 1, 0])
    for own in (False, True):  # the first token has none, or the last
        assert aligned(four, 5, own=own).counts.tolist() == [1, 2, 1, 1, 0]
    with pytest.raises(BadRow, match="targets for 4 of 6 tokens"):
        aligned(four, 6, own=False)
