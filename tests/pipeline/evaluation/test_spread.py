"""The spread of a difference covers the truth as often as it says, and pairs what belongs together."""

import math

import numpy as np
import pytest

from kdpipe.pipeline.evaluation.spread import differences, paired, same_sequences, student_quantile
from support.evaluations import evaluation

# The 95 % quantiles of Student's t, from the printed tables.
TABLE = {1: 6.3138, 2: 2.9200, 3: 2.3534, 5: 2.0150, 10: 1.8125, 30: 1.6973, 1000: 1.6464}


@pytest.mark.parametrize(("freedom", "due"), TABLE.items())
def test_the_quantile_is_that_of_the_tables(freedom: int, due: float) -> None:
    assert student_quantile(freedom) == pytest.approx(due, rel=3e-3)


@pytest.mark.parametrize("n", [3, 10, 60])
def test_nine_of_ten_intervals_hold_the_true_difference(n: int) -> None:
    rng = np.random.default_rng(n)
    truth, held, tries = 0.3, 0, 1500
    for _ in range(tries):
        sizes = rng.integers(400, 513, n).astype(float)
        sums = sizes * (truth + 0.5 * rng.standard_normal(n))
        found = paired(sums, sizes)
        assert found.spread is not None
        held += abs(found.value - truth) <= found.spread
    assert 0.87 < held / tries < 0.93


def test_the_mean_is_over_positions_and_the_spread_of_equal_sequences_is_the_textbook_one() -> None:
    sums, sizes = np.array([10.0, 20.0, 60.0]), np.array([10.0, 10.0, 30.0])
    assert paired(sums, sizes).value == pytest.approx(90 / 50)
    values = np.array([0.1, 0.4, 0.25, 0.3])
    found = paired(values * 100, np.full(4, 100.0))
    assert found.spread == pytest.approx(student_quantile(3) * values.std(ddof=1) / math.sqrt(4))


def test_one_sequence_has_no_spread() -> None:
    assert paired(np.array([5.0]), np.array([10.0])).spread is None


def test_pairs_take_out_what_is_hard_for_both() -> None:
    hard = [100.0, 900.0, 300.0, 1500.0]
    first = evaluation(cross_entropy=hard)
    other = evaluation(cross_entropy=[value + 10 for value in hard])
    found = differences(first, other)["cross_entropy"]
    assert found.value == pytest.approx(0.1)
    assert found.spread == pytest.approx(0.0, abs=1e-12)


def test_every_number_that_both_know_has_its_difference() -> None:
    found = differences(evaluation(agreed=[50, 50, 50, 50]), evaluation(agreed=[60, 50, 50, 50], ece=0.3))
    assert set(found) == {"cross_entropy", "kl_teacher", "top1_agreement", "ece"}
    assert found["top1_agreement"].value == pytest.approx(10 / 400)
    assert found["ece"].value == pytest.approx(0.3 - evaluation().ece)
    assert found["ece"].spread is None
    assert "kl_teacher" not in differences(evaluation(kl_teacher=None), evaluation())


@pytest.mark.parametrize(
    "changed", [{"cache_id": "other"}, {"split": "train"}, {"numbers": (0, 1, 2, 9)}, {"positions": (1, 2, 3, 4)}]
)
def test_other_sequences_cannot_be_compared(changed: dict[str, object]) -> None:
    assert same_sequences(evaluation(), evaluation())
    other = evaluation(**changed)
    assert not same_sequences(evaluation(), other)
    assert differences(evaluation(), other) == {}
