"""Sums of made-up rows: bounds of buckets and bins, unknown numbers, and what a number that is too large becomes."""

from typing import Any

import numpy as np
import pytest

from kdpipe.pipeline.evaluation.tally import ENTROPY_EDGES, EvalTally, EvaluatedRows
from kdpipe.schemas.train_report import Evaluation


def rows(n: int = 1, **given: Any) -> EvaluatedRows:
    values: dict[str, Any] = {
        "document_N": np.zeros(n, np.int64),
        "cross_entropy_N": np.full(n, 2.0),
        "confidence_N": np.full(n, 0.5),
        "hit_N": np.zeros(n, bool),
        "kl_N": np.full(n, 1.0),
        "agreed_N": np.ones(n, bool),
        "teacher_entropy_N": np.full(n, 1.5),
    }
    return EvaluatedRows(
        **{name: np.asarray(given.get(name, value)) for name, value in values.items()} | none_of(given)
    )


def none_of(given: dict[str, Any]) -> dict[str, Any]:
    return {name: None for name, value in given.items() if value is None}


def evaluated(*batches: EvaluatedRows) -> Evaluation:
    tally = EvalTally()
    for batch in batches:
        tally.add(batch)
    return tally.evaluation("unbiased", cache_id=None, split="validation")


@pytest.mark.parametrize(
    ("entropy", "bucket"), [(-1e-6, 0), (0.0, 0), (0.49, 0), (0.5, 1), (1.0, 2), (3.99, 3), (4.0, 4), (11.0, 4)]
)
def test_a_bucket_begins_at_its_bound(entropy: float, bucket: int) -> None:
    result = evaluated(rows(teacher_entropy_N=[entropy])).by_entropy
    assert [one.positions for one in result] == [int(i == bucket) for i in range(len(ENTROPY_EDGES))]
    assert [one.cross_entropy for one in result] == [2.0 if i == bucket else None for i in range(len(ENTROPY_EDGES))]
    assert result[-1].to_nats is None


def test_a_row_of_unknown_entropy_counts_but_is_in_no_bucket() -> None:
    result = evaluated(rows(2, teacher_entropy_N=[np.nan, 0.1]))
    assert result.positions == 2
    assert sum(one.positions for one in result.by_entropy) == 1


def test_calibration_is_the_mean_gap_of_fifteen_bins() -> None:
    sure = rows(4, confidence_N=[1.0, 1.0, 0.95, 0.95], hit_N=[True, True, True, False])
    assert evaluated(sure).ece == pytest.approx(abs(3.9 - 3) / 4)
    apart = rows(2, confidence_N=[0.0, 1.0], hit_N=[True, False])
    assert evaluated(apart).ece == pytest.approx(1.0)
    right = rows(4, confidence_N=[0.5, 0.5, 0.5, 0.5], hit_N=[True, False, True, False])
    assert evaluated(right).ece == 0.0


def test_a_metric_missing_from_one_batch_is_missing_from_the_result() -> None:
    result = evaluated(rows(), rows(document_N=[1], kl_N=None, agreed_N=None, teacher_entropy_N=None))
    assert result.kl_teacher is result.kl_teacher_estimate is result.top1_agreement is None
    assert result.by_entropy == ()
    assert result.by_document.kl_teacher is result.by_document.agreed is None
    assert result.cross_entropy == 2.0


def test_a_document_split_over_batches_is_one_sum() -> None:
    result = evaluated(rows(2, document_N=[7, 2]), rows(3, document_N=[2, 7, 7])).by_document
    assert (result.numbers, result.positions, result.cross_entropy) == ((7, 2), (3, 2), (6.0, 4.0))


def test_documents_are_in_reading_order() -> None:
    result = evaluated(rows(3, document_N=[7, 7, 2]), rows(1, document_N=[5], cross_entropy_N=[9.0])).by_document
    assert result.numbers == (7, 2, 5)
    assert result.positions == (2, 1, 1)
    assert result.cross_entropy == (4.0, 2.0, 9.0)


def test_a_perplexity_that_overflows_has_no_value() -> None:
    assert evaluated(rows(cross_entropy_N=[800.0])).perplexity is None


def test_the_summary_has_only_metrics() -> None:
    summary = evaluated(rows()).summary
    assert summary["cross_entropy"] == 2.0
    assert not {"by_entropy", "by_document", "terms"} & set(summary)
