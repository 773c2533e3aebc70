"""The spread of a difference covers the truth as often as claimed, and pairs what belongs together."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from kdpipe.pipeline.evaluation.spread import differences, paired, same_positions, student_quantile
from support.correlated_documents import MEAN, Corpus, Doubles, by_document, by_sequence
from support.evaluations import evaluation

# The 95 % quantiles of Student's t, from the printed tables.
TABLE = {1: 6.3138, 2: 2.9200, 3: 2.3534, 5: 2.0150, 10: 1.8125, 30: 1.6973, 1000: 1.6464}


@pytest.mark.parametrize(("freedom", "expected"), TABLE.items())
def test_the_quantile_equals_published_tables(freedom: int, expected: float) -> None:
    assert student_quantile(freedom) == pytest.approx(expected, rel=3e-3)


@pytest.mark.parametrize(("freedom", "low", "high"), [(1.0, 6.31, 6.32), (1.5, 2.93, 6.31), (2.0, 2.91, 2.93)])
def test_the_quantile_falls_with_the_degrees_of_freedom(freedom: float, low: float, high: float) -> None:
    assert low < student_quantile(freedom) < high


@pytest.mark.many
@pytest.mark.parametrize("n_documents", [20, 50, 166])
@pytest.mark.parametrize("log_spread", [0.5, 1.0, 1.5])
def test_nine_of_ten_intervals_over_correlated_documents_contain_the_true_value(
    n_documents: int, log_spread: float
) -> None:
    assert 0.88 <= coverage(Corpus(n_documents=n_documents, log_spread=log_spread, correlation=0.5)) <= 0.92


def test_half_of_the_intervals_over_sequences_contain_the_true_value() -> None:
    corpus = Corpus(n_documents=166, correlation=0.25)
    assert coverage(corpus, by_sequence) < 0.6
    assert coverage(corpus, by_document) > 0.88


def coverage(corpus: Corpus, grouped: Callable[..., tuple[Doubles, Doubles]] = by_document, tries: int = 3000) -> float:
    """The share of 90 % intervals that contain the true value; its own standard error is 0.0055."""
    rng, held = np.random.default_rng(1), 0
    for _ in range(tries):
        result = paired(*grouped(*corpus.draw(rng)))
        assert result.spread is not None
        held += abs(result.value - MEAN) <= result.spread
    return held / tries


def test_one_document_that_is_nearly_everything_widens_the_interval() -> None:
    even, uneven = (
        paired(np.array([0.1, 0.4, 0.25, 0.3]) * sizes, sizes).spread
        for sizes in (np.full(4, 100.0), np.array([10_000.0, 100.0, 100.0, 100.0]))
    )
    assert even is not None and uneven is not None
    assert uneven > 2 * even


def test_the_mean_is_over_positions_and_the_spread_of_equal_documents_is_the_jackknife_one() -> None:
    sums, sizes = np.array([10.0, 20.0, 60.0]), np.array([10.0, 10.0, 30.0])
    assert paired(sums, sizes).value == pytest.approx(90 / 50)
    values = np.array([0.1, 0.4, 0.25, 0.3])
    result = paired(values * 100, np.full(4, 100.0))
    # Of equal documents each has a quarter: HC3's division makes n - 1 of the n in the textbook's variance.
    assert result.spread == pytest.approx(student_quantile(3) * values.std(ddof=0) / 0.75 / math.sqrt(4))


def test_one_document_has_no_spread() -> None:
    assert paired(np.array([5.0]), np.array([10.0])).spread is None


def test_pairing_removes_common_difficulty() -> None:
    hard = [100.0, 900.0, 300.0, 1500.0]
    first = evaluation(cross_entropy=hard)
    other = evaluation(cross_entropy=[value + 10 for value in hard])
    result = differences(first, other)["cross_entropy"]
    assert result.value == pytest.approx(0.1)
    assert result.spread == pytest.approx(0.0, abs=1e-12)


def test_every_metric_that_both_have_has_a_difference() -> None:
    result = differences(evaluation(agreed=[50, 50, 50, 50]), evaluation(agreed=[60, 50, 50, 50], ece=0.3))
    assert set(result) == {"cross_entropy", "kl_teacher", "top1_agreement", "ece"}
    assert result["top1_agreement"].value == pytest.approx(10 / 400)
    assert result["ece"].value == pytest.approx(0.3 - evaluation().ece)
    assert result["ece"].spread is None
    assert "kl_teacher" not in differences(evaluation(kl_teacher=None), evaluation())


@pytest.mark.parametrize(
    "changed", [{"cache_id": "other"}, {"split": "train"}, {"numbers": (0, 1, 2, 9)}, {"positions": (1, 2, 3, 4)}]
)
def test_other_positions_cannot_be_compared(changed: dict[str, object]) -> None:
    assert same_positions(evaluation(), evaluation())
    other = evaluation(**changed)
    assert not same_positions(evaluation(), other)
    assert differences(evaluation(), other) == {}
