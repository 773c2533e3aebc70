"""Two words about the same rows: what rounding explains, and ids that only one of them keeps exactly."""

import numpy as np
import pytest

from kdpipe.cache.format.rows import Block
from kdpipe.pipeline.audit.teacher_differences import comparable, differences

IDS = 10
MASK = np.array([True, False])


def one_row(probabilities: dict[int, float]) -> Block:
    """A row that keeps some ids exactly, and one that is not trained on."""
    kept = sum(probabilities.values())
    with np.errstate(divide="ignore"):
        tail = np.log(np.float32(1 - kept))
    return Block(
        n_exact=np.array([len(probabilities), 0]),
        n_draws=np.zeros(2, np.int64),
        ids=np.array(list(probabilities), np.int32),
        logprobs=np.log(np.array(list(probabilities.values()), np.float32)),
        log_tail=np.array([tail, np.nan], np.float32),
    )


def largest(one: dict[int, float], other: dict[int, float], bound: float = 0.0) -> float:
    found = differences(
        comparable(one_row(one), MASK, IDS, {}), comparable(one_row(other), MASK, IDS, {}), {"logprob": bound}
    )
    return float(found.max())


def test_equal_words_do_not_differ() -> None:
    assert largest({3: 0.5, 7: 0.25}, {3: 0.5, 7: 0.25}) == 0


def test_a_shared_id_differs_by_its_log_p_beyond_the_bound() -> None:
    assert largest({3: 0.5}, {3: 0.25}) == pytest.approx(np.log(2), rel=1e-6)
    assert largest({3: 0.5}, {3: 0.25}, bound=np.log(2)) == pytest.approx(0.25, rel=1e-6)  # of the tails


def test_an_id_between_two_thresholds_may_be_on_one_side_only() -> None:
    assert largest({3: 0.5, 7: 0.1}, {3: 0.5}) == pytest.approx(0.1, rel=1e-5)  # of the tails


def test_an_id_of_one_side_is_not_more_probable_than_the_least_of_the_other() -> None:
    assert largest({3: 0.5, 7: 0.25}, {4: 0.5, 8: 0.25}) == pytest.approx(np.log(2), rel=1e-5)


def test_an_id_of_one_side_is_not_more_probable_than_what_the_other_leaves() -> None:
    assert largest({3: 0.9}, {4: 0.9}) == pytest.approx(np.log(9), rel=1e-5)
