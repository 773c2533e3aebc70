"""Kind `topk`: the k most probable ids.

In: a chunk. Out: the ids that it keeps.
"""

import numpy as np
import torch
from torch import Tensor

from kdpipe.pipeline.targets.chunk import KeptEntries, LogitChunk
from kdpipe.pipeline.targets.stored_entries import EntryChoice, Longs, PaddedEntries, keep_first
from kdpipe.schemas.target_kinds import TopK


class TopKSampler:
    """The same number of ids for every row, no draws."""

    def __init__(self, keep: TopK, vocabulary_size: int) -> None:
        self._k = keep.k
        self.width = min(keep.k, vocabulary_size)

    def keep(self, chunk: LogitChunk, keys_C: Tensor) -> KeptEntries:
        n_C = torch.full_like(keys_C, self.width)
        return KeptEntries(n_exact_C=n_C, n_draws_C=torch.zeros_like(n_C), ids_CK=chunk.top(self.width))

    def resample(self, entries: PaddedEntries, keys_R: Longs) -> EntryChoice:
        return keep_first(entries, np.minimum(entries.n_exact_R, self._k))
