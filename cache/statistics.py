"""Sums over the rows of a part, for `cache inspect` and for choosing rows later.

In: sequences and targets as they are written. Out: the `statistics` object of part.json.
Before it: `rows.py`. After it: `part_writer.py`; `inspect.py` adds parts up.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from kdpipe.cache.encode import draw_mask, row_starts
from kdpipe.cache.rows import Block, Sequence
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.part import Statistics


class StatisticsSum:
    """Adds sequences up, in float64 and in the order in which they come."""

    def __init__(self, manifest: Manifest) -> None:
        self._targets = manifest.targets
        self._entropy = self._label = self._tail = 0.0
        self._label_is_top1 = 0
        self._entries = np.zeros(manifest.targets.max_entries + 1, np.int64)

    def add(self, sequence: Sequence, block: Block) -> None:
        """Take the rows of a sequence whose loss_mask is true."""
        mask = np.asarray(sequence.loss_mask, bool)
        if self._targets.keep.kind == "none":
            return
        assert block.entropy is not None and block.label_logprob is not None
        self._entropy += float(np.sum(np.asarray(block.entropy, np.float64)[mask]))
        self._label += -float(
            np.sum(np.asarray(block.label_logprob, np.float64)[mask], where=np.isfinite(block.label_logprob[mask]))
        )
        if self._targets.has_entries:
            counts = np.asarray(block.n_exact, np.int64) + block.n_draws
            self._entries += np.bincount(counts[mask], minlength=len(self._entries))
            self._label_is_top1 += self._count_top1(block, mask)
        if self._targets.tail_known and block.log_tail is not None:
            self._tail += float(np.sum(np.exp(np.asarray(block.log_tail, np.float64)[mask])))

    def _count_top1(self, block: Block, mask: npt.NDArray[np.bool_]) -> int:
        """How often no kept id is more probable than the next token."""
        counts = np.asarray(block.n_exact, np.int64) + block.n_draws
        rows = mask & (counts > 0)
        if not rows.any() or block.label_logprob is None:
            return 0
        exact = np.where(draw_mask(block.n_exact, block.n_draws), -np.inf, block.logprobs)
        best = np.maximum.reduceat(exact, row_starts(counts)[rows])
        return int(np.count_nonzero(np.asarray(block.label_logprob)[rows] >= best))

    def record(self) -> Statistics:
        """The sums so far."""
        targets = self._targets
        if targets.keep.kind == "none":
            return Statistics()
        return Statistics(
            entropy_nats=self._entropy,
            label_nats=self._label,
            label_is_top1=self._label_is_top1 if targets.has_entries else None,
            tail_mass=self._tail if targets.tail_known else None,
            entries=tuple((n, int(self._entries[n])) for n in np.flatnonzero(self._entries).tolist())
            if targets.has_entries
            else (),
        )


def entry_quantiles(statistics: Iterable[Statistics]) -> dict[str, float]:
    """Mean, median and 95th percentile of the ids a position, over many parts."""
    counts: dict[int, int] = {}
    for part in statistics:
        for n, times in part.entries:
            counts[n] = counts.get(n, 0) + times
    values, weights = np.array(sorted(counts), np.int64), np.array([counts[n] for n in sorted(counts)], np.int64)
    if not len(values):
        return {"mean": 0.0, "p50": 0.0, "p95": 0.0}
    reached = np.cumsum(weights) / weights.sum()
    quantile = {name: float(values[np.searchsorted(reached, q)]) for name, q in (("p50", 0.5), ("p95", 0.95))}
    return {"mean": float((values * weights).sum() / weights.sum()), **quantile}
