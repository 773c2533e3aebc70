"""Kind `topp`: the fewest most probable ids whose mass reaches p.

In: a chunk at the target temperature. Out: the ids that it keeps.
"""

import numpy as np
import torch
from torch import Tensor

from kdpipe.pipeline.targets.chunk import KeptEntries, LogitChunk
from kdpipe.pipeline.targets.stored_entries import EntryChoice, Longs, PaddedEntries, keep_first, slots
from kdpipe.schemas.target_kinds import TopP


class TopPSampler:
    """Ids up to a mass, at most `max_entries`, no draws."""

    def __init__(self, keep: TopP, vocabulary_size: int) -> None:
        self._p = keep.p
        self.width = min(keep.max_entries, vocabulary_size)

    def keep(self, chunk: LogitChunk, keys_C: Tensor) -> KeptEntries:
        ids_CK = chunk.top(self.width)
        reached_CK = chunk.powers_CP.gather(1, ids_CK).double().cumsum(dim=1)
        short_CK = reached_CK[:, :-1] < self._p * chunk.total_C.double()[:, None]
        n_C = short_CK.sum(dim=1) + 1
        return KeptEntries(n_exact_C=n_C, n_draws_C=torch.zeros_like(keys_C), ids_CK=ids_CK)

    def resample(self, entries: PaddedEntries, keys_R: Longs) -> EntryChoice:
        return keep_first(entries, _reaching(entries, self._p))


def _reaching(entries: PaddedEntries, p: float) -> Longs:
    """The smallest number of exact ids whose mass reaches p, or all."""
    is_exact = slots(entries) < entries.n_exact_R[:, None]
    reached = np.cumsum(np.where(is_exact, entries.weights_RK, 0.0), axis=1)
    n_R: Longs = np.minimum((reached < p).sum(axis=1) + 1, entries.n_exact_R)
    return n_R
