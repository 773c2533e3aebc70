"""Kind `topp`: the fewest most probable ids whose mass reaches p.

In: a chunk at the target temperature. Out: the ids that it keeps.
"""

import torch
from torch import Tensor

from kdpipe.pipeline.targets.chunk import KeptEntries, LogitChunk
from kdpipe.schemas.targets import TopP


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
