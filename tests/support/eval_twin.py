"""The slow twin of evaluation: every number row by row, from the student's whole distribution in float64.

In: a model as transformers gives it, a cache. Out: rows with their numbers, and means, buckets and calibration error
made of them by plain loops.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kdpipe.cache import Cache


@dataclass(frozen=True, kw_only=True)
class Row:
    """One position."""

    sequence: int
    document: int
    cross_entropy: float
    kl: float | None
    agreed: bool | None
    hit: bool
    confidence: float
    entropy: float | None


def rows_of(model: Any, cache: Cache, numbers: Iterable[int]) -> list[Row]:
    """Every trained position of some sequences."""
    found = []
    size = cache.manifest.vocabulary_size
    for number in numbers:
        rows = cache[number]
        ends = [*rows.document_starts[1:].tolist(), len(rows)]
        logq = np.zeros((len(rows), size))
        for start, end in zip(rows.document_starts.tolist(), ends, strict=True):
            with torch.no_grad():
                logits = model(torch.tensor(rows.tokens[None, start:end].astype(np.int64)), use_cache=False).logits
            messages = logits[0, :, :size].numpy().astype(np.float64)
            logq[start:end] = messages - np.log(np.exp(messages).sum(axis=1, keepdims=True))
        dense = cache.dense(number) if cache.manifest.targets.keep.kind == "state" else None
        entry = 0
        for t in range(len(rows)):
            own = slice(entry, entry + int(rows.count[t]))
            entry = own.stop
            if not rows.loss_mask[t]:
                continue
            label = int(rows.tokens[t + 1])
            top = int(logq[t].argmax())
            found.append(
                Row(
                    sequence=number,
                    document=int(rows.documents[np.searchsorted(rows.document_starts, t, side="right") - 1]),
                    cross_entropy=-float(logq[t, label]),
                    kl=kl_of(cache, rows, t, own, logq[t], None if dense is None else dense[t]),
                    agreed=agrees(cache, rows, own, top, None if dense is None else dense[t]),
                    hit=top == label,
                    confidence=float(np.exp(logq[t, top])),
                    entropy=None if rows.entropy is None else float(rows.entropy[t]),
                )
            )
    return found


def kl_of(cache: Cache, rows: Any, t: int, own: slice, logq: Any, dense: Any) -> float | None:
    """KL at T=1 by what the kind of the cache knows."""
    spec = cache.manifest.targets
    if dense is not None:
        p = np.exp(dense.astype(np.float64))
        return float(np.sum(p * (dense - logq)))
    if spec.keep.kind == "none" or not spec.tail_known:
        return None
    if spec.has_draws and spec.target_temperature == 1.0:
        weights = rows.weights[own].astype(np.float64)
        # Draws that carry their own log p say the tail's entropy too; else the cached one does.
        plogp = np.sum(weights * rows.logprobs[own]) if spec.draw_values else -rows.entropy[t]
        return float(np.sum(weights * -logq[rows.ids[own]]) + plogp)
    n_exact = int(rows.n_exact[t])
    ids, logp = rows.ids[own][:n_exact], rows.logprobs[own][:n_exact].astype(np.float64)
    others = np.delete(logq, ids)
    result = sum(math.exp(a) * (a - logq[i]) for a, i in zip(logp, ids, strict=True))
    tail = float(rows.log_tail[t])
    if len(others) and tail > -math.inf:
        result += math.exp(tail) * (tail - math.log(np.exp(others).sum()))
    return float(result)


def agrees(cache: Cache, rows: Any, own: slice, top: int, dense: Any) -> bool | None:
    """Whether the student's most probable id is the teacher's."""
    if cache.manifest.targets.keep.kind == "none":
        return None
    return top == (int(dense.argmax()) if dense is not None else int(rows.ids[own][0]))


def mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def calibration_error(rows: Sequence[Row], n_bins: int = 15) -> float:
    """Mean gap between confidence and hits, over bins of equal width."""
    total = 0.0
    for b in range(n_bins):
        low, high = b / n_bins, (b + 1) / n_bins
        own = [row for row in rows if low <= row.confidence < high or (b == n_bins - 1 and row.confidence >= high)]
        if own:
            gap = sum(row.confidence for row in own) / len(own) - sum(row.hit for row in own) / len(own)
            total += len(own) / len(rows) * abs(gap)
    return total


def numbers_of(rows: Sequence[Row]) -> dict[str, float | None]:
    """The numbers of some rows."""
    return {
        "positions": len(rows),
        "cross_entropy": mean([row.cross_entropy for row in rows]),
        "kl_teacher": mean([row.kl for row in rows]),
        "top1_agreement": mean([row.agreed for row in rows]),
        "ece": calibration_error(rows) if rows else None,
    }
