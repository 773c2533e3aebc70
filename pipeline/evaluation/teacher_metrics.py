"""The teacher's own metrics on a split of its cache, from the stored numbers: no model, no torch.

In: a cache. Out: an `Evaluation` at temperature 1 with cross-entropy, perplexity and, where the cache holds the most
probable ids, the calibration error; and the teacher's mean entropy.
"""

from dataclasses import dataclass

import numpy as np

from kdpipe.cache.format.rows import Rows
from kdpipe.cache.reader import Cache
from kdpipe.pipeline.evaluation.tally import EvalTally, EvaluatedRows, evaluated_sequences
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.progress import Progress, Task, tracked
from kdpipe.schemas.train_report import Evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherMetrics:
    """`evaluation` of the teacher, and its metrics by name: only those that the cache determines."""

    evaluation: Evaluation
    numbers: dict[str, float | None]


def teacher_metrics(cache: Cache, limit: int | None, progress: Progress) -> TeacherMetrics:
    """Metrics of the sequences that `Evaluator` uses, in the same order."""
    tally, entropies, numbers = EvalTally(), list[float](), evaluated_sequences(cache, limit)
    task = Task(name="read teacher", unit="sequences", total=len(numbers))
    has_tops = cache.manifest.targets.has_entries
    for number in tracked(numbers, progress, task):
        rows = cache.rows(number, hidden=False)
        trained = np.flatnonzero(rows.loss_mask)
        evaluated = _evaluated(cache, rows, has_tops=has_tops)
        tally.add(evaluated)
        if rows.entropy is not None:
            entropies += rows.entropy[trained].astype(np.float64).tolist()
    if not tally.n_positions:
        raise ConfigError(f"{cache.url} has no positions to evaluate in the selected sequences")
    assert cache.split_name is not None
    evaluation = tally.evaluation(None, cache_id=cache.cache_id, split=cache.split_name)
    entropy = float(np.mean(entropies)) if entropies else None
    metrics: dict[str, float | None] = {
        "cross_entropy": evaluation.cross_entropy,
        "perplexity": evaluation.perplexity,
        **({"ece": evaluation.ece} if has_tops else {}),
        **({"teacher_entropy": entropy} if entropy is not None and np.isfinite(entropy) else {}),
    }
    return TeacherMetrics(evaluation=evaluation, numbers=metrics)


def _evaluated(cache: Cache, rows: Rows, *, has_tops: bool) -> EvaluatedRows:
    trained = np.flatnonzero(rows.loss_mask)
    if rows.label_logprob is None or not np.isfinite(label_logprob := rows.label_logprob[trained]).all():
        raise ConfigError(f"{cache.url} does not store the teacher's probability of each next token")
    lengths = np.diff(np.append(rows.document_starts, len(rows)))
    first = (np.cumsum(rows.count) - rows.count)[trained]
    # The first exact id of a row is the most probable one.
    hit = rows.ids[first] == rows.tokens[trained + 1] if has_tops else np.zeros(len(trained), np.bool_)
    confidence = np.exp(rows.logprobs[first].astype(np.float64)) if has_tops else np.zeros(len(trained))
    return EvaluatedRows(
        document_N=np.repeat(rows.documents, lengths)[trained],
        cross_entropy_N=-label_logprob.astype(np.float64),
        confidence_N=confidence,
        hit_N=hit,
        kl_N=None,
        agreed_N=None,
        teacher_entropy_N=None,
    )
