"""Kind `topk`: the k most probable ids.

In: a chunk. Out: the ids that it keeps.
"""

import torch
from torch import Tensor

from kdpipe.pipeline.targets.chunk import KeptEntries, LogitChunk
from kdpipe.schemas.targets import TopK


class TopKSampler:
    """The same number of ids for every row, no draws."""

    def __init__(self, keep: TopK, vocabulary_size: int) -> None:
        self.width = min(keep.k, vocabulary_size)

    def keep(self, chunk: LogitChunk, keys_C: Tensor) -> KeptEntries:
        n_C = torch.full_like(keys_C, self.width)
        return KeptEntries(n_exact_C=n_C, n_draws_C=torch.zeros_like(n_C), ids_CK=chunk.top(self.width))
