"""The slow twin: the target of every row over the whole vocabulary.

In: the rows of a sequence. Out: float32 [T, V] log-probabilities. Draws have the weights of `weights`; topk and topp
spread their tail evenly over the other ids; states go through the output head.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.cache.format.quantizers import Floats
from kdpipe.cache.format.rows import Rows
from kdpipe.schemas.errors import Incompatible
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.target_kinds import State


def dense_rows(rows: Rows, manifest: Manifest, table: Callable[[str], npt.NDArray[Any]]) -> Floats:
    """Log-probabilities of every id at the target temperature; rows with loss_mask false are NaN."""
    targets = manifest.targets
    if not targets.keep.has_teacher:
        raise Incompatible("this cache has tokens only, no targets", hint="create a cache with another --targets")
    if isinstance(targets.keep, State):
        result = _from_states(rows, targets.keep, table, targets.target_temperature)
    else:
        if not targets.tail_known:
            raise Incompatible("the tail mass of this cache is unknown, so its targets cannot be made dense")
        result = _from_entries(rows, manifest, spread=not targets.has_draws)
    result[~rows.loss_mask] = np.nan
    return result.astype(np.float32)


def _from_entries(rows: Rows, manifest: Manifest, spread: bool) -> npt.NDArray[np.float64]:
    n_vocabulary = manifest.vocabulary_size
    dense = np.zeros((len(rows), n_vocabulary))
    starts = np.cumsum(rows.count) - rows.count
    for t in np.flatnonzero(rows.loss_mask).tolist():
        entries = slice(int(starts[t]), int(starts[t] + rows.count[t]))
        kept = rows.ids[entries]
        weights = rows.weights[entries].astype(np.float64)
        left = n_vocabulary - len(kept)
        if spread and left:
            dense[t] = max(0.0, 1.0 - weights.sum()) / left
        dense[t, kept] = weights
    with np.errstate(divide="ignore"):
        return np.log(dense)


def _from_states(
    rows: Rows, keep: State, table: Callable[[str], npt.NDArray[Any]], temperature: float
) -> npt.NDArray[np.float64]:
    assert rows.state is not None
    logits = rows.state.astype(np.float64) @ table("output_head").astype(np.float64).T
    if keep.head_bias:
        logits += table("output_bias").astype(np.float64)
    logits *= keep.logit_scale
    if keep.soft_cap is not None:
        logits = keep.soft_cap * np.tanh(logits / keep.soft_cap)
    logits = logits / temperature
    logits -= logits.max(axis=1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
