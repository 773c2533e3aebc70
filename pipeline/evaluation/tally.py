"""`EvalTally`: sums over evaluated rows by document, by teacher entropy and by student confidence.

In: metrics of rows, batch by batch. Out: means, buckets, sums by document, the calibration error. It grows with the
number of documents, not of rows.
"""

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt

from kdpipe.cache.order import SequenceOrder
from kdpipe.cache.reader import Cache
from kdpipe.schemas.choices import Estimate
from kdpipe.schemas.train_report import Bucket, ByDocument, Evaluation

# Nats; fixed, so that caches can be compared. 4 nats is a uniform choice among 55.
ENTROPY_EDGES = (0.0, 0.5, 1.0, 2.0, 4.0)
# Guo et al. 2017, On Calibration of Modern Neural Networks.
CONFIDENCE_BINS = 15
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedRows:
    """Metrics of N rows; `confidence` is of the student's most probable id, `hit` whether that is the label, `agreed`
    whether it is the teacher's."""

    document_N: npt.NDArray[np.int64]
    cross_entropy_N: Doubles
    confidence_N: Doubles
    hit_N: npt.NDArray[np.bool_]
    kl_N: Doubles | None
    agreed_N: npt.NDArray[np.bool_] | None
    teacher_entropy_N: Doubles | None


@final
class EvalTally:
    """Running sums; rows of unknown teacher entropy are in no bucket."""

    def __init__(self) -> None:
        self._by_document: dict[int, Doubles] = {}
        self._by_bucket = np.zeros((len(ENTROPY_EDGES) + 1, 4))
        self._calibration = np.zeros((len(ENTROPY_EDGES) + 1, CONFIDENCE_BINS, 3))
        self._knows = {"kl": True, "agreed": True, "entropy": True}

    def add(self, rows: EvaluatedRows) -> None:
        """Add rows; a document may continue in later ones."""
        for name, known in (("kl", rows.kl_N), ("agreed", rows.agreed_N), ("entropy", rows.teacher_entropy_N)):
            self._knows[name] &= known is not None
        n = len(rows.document_N)
        columns = [np.ones(n), rows.cross_entropy_N, _or_zeros(rows.kl_N, n), _or_zeros(rows.agreed_N, n)]
        sums_N4 = np.stack([column.astype(np.float64) for column in columns], axis=1)
        for number in dict.fromkeys(rows.document_N.tolist()):
            sums_4 = sums_N4[rows.document_N == number].sum(axis=0)
            self._by_document[number] = self._by_document.get(number, np.zeros(4)) + sums_4
        bucket_N = _buckets(rows.teacher_entropy_N, n)
        np.add.at(self._by_bucket, bucket_N, sums_N4)
        bin_N = np.clip((rows.confidence_N * CONFIDENCE_BINS).astype(np.int64), 0, CONFIDENCE_BINS - 1)
        calibration_N3 = np.stack([np.ones(n), rows.confidence_N, rows.hit_N.astype(np.float64)], axis=1)
        np.add.at(self._calibration, (bucket_N, bin_N), calibration_N3)

    @property
    def n_positions(self) -> int:
        return int(self._by_bucket[:, 0].sum())

    def evaluation(self, estimate: Estimate | None, **beside: Any) -> Evaluation:
        """The metrics of all rows; `beside` are other fields of the record."""
        whole = self._numbers(self._by_bucket.sum(axis=0), self._calibration.sum(axis=0))
        cross_entropy = whole["cross_entropy"]
        assert cross_entropy is not None
        return Evaluation(
            **whole,
            perplexity=math.exp(cross_entropy) if cross_entropy < math.log(1e300) else None,
            kl_teacher_estimate=estimate if self._knows["kl"] else None,
            by_entropy=self._buckets() if self._knows["entropy"] else (),
            by_document=self._documents(),
            **beside,
        )

    def _numbers(self, sums: Doubles, calibration: Doubles) -> dict[str, Any]:
        n, cross_entropy, kl, agreed = sums.tolist()
        gaps = np.abs(calibration[:, 1] - calibration[:, 2]).sum()
        return {
            "positions": int(n),
            "cross_entropy": cross_entropy / n if n else None,
            "kl_teacher": kl / n if n and self._knows["kl"] else None,
            "top1_agreement": agreed / n if n and self._knows["agreed"] else None,
            "ece": float(gaps) / n if n else None,
        }

    def _buckets(self) -> tuple[Bucket, ...]:
        ends = (*ENTROPY_EDGES[1:], None)
        return tuple(
            Bucket(from_nats=begin, to_nats=end, **self._numbers(self._by_bucket[i], self._calibration[i]))
            for i, (begin, end) in enumerate(zip(ENTROPY_EDGES, ends, strict=True))
        )

    def _documents(self) -> ByDocument:
        columns = list(zip(*(sums.tolist() for sums in self._by_document.values()), strict=True))
        return ByDocument(
            numbers=tuple(self._by_document),
            positions=tuple(int(n) for n in columns[0]),
            cross_entropy=columns[1],
            kl_teacher=columns[2] if self._knows["kl"] else None,
            agreed=tuple(int(n) for n in columns[3]) if self._knows["agreed"] else None,
        )


def evaluated_sequences(cache: Cache, limit: int | None) -> list[int]:
    """All sequences, or a subset that depends on the cache alone, in stored order."""
    if limit is None or limit >= len(cache):
        return list(range(len(cache)))
    return sorted(SequenceOrder(cache.sequences_by_part, 0).at(np.arange(limit)).tolist())


def _buckets(entropy_N: Doubles | None, n: int) -> npt.NDArray[np.int64]:
    """The bucket of each row, an extra last one for unknown entropy; rounding may make an entropy negative."""
    last = len(ENTROPY_EDGES)
    if entropy_N is None:
        return np.full(n, last)
    buckets = np.searchsorted(ENTROPY_EDGES[1:], entropy_N, side="right")
    return np.where(np.isnan(entropy_N), last, buckets)


def _or_zeros(values: npt.NDArray[Any] | None, n: int) -> npt.NDArray[Any]:
    return np.zeros(n) if values is None else values
