"""Probabilities as integers, so that drawing is exact: the mass below a point does not depend on the order of adding.

In: the powers of a chunk and a scale for each row. Out: their sum, and the ids at points along it, in natural order.
"""

import torch
from torch import Tensor

from kdpipe.pipeline.targets.chunk import BLOCK, LogitChunk

# The largest mass of an id. Of 2^24 ids they add up to 2^54 at most.
LARGEST_MASS = 1 << 30
# A smaller tail is below the precision of a float32 softmax and gets no draws.
SMALLEST_TAIL = 1e-5


class Masses:
    """The integer masses of the ids of each row of a chunk, summed up by blocks."""

    def __init__(self, chunk: LogitChunk, scale_C: Tensor) -> None:
        """Masses are powers times a scale, rounded, at most LARGEST_MASS."""
        self._chunk = chunk
        torch.mul(chunk.powers_CP, scale_C.float()[:, None], out=chunk.spare_CP)
        chunk.spare_CP.clamp_(max=float(LARGEST_MASS)).round_()
        self._masses_CP = chunk.masses_CP.copy_(chunk.spare_CP)
        shape = (chunk.n_rows, chunk.n_blocks, BLOCK)
        self._blocks_CB = _exact_sums(self._masses_CP.view(shape), chunk.spare_CP.view(shape))
        self.total_C = self._blocks_CB.sum(dim=1)

    def of(self, ids_CK: Tensor) -> Tensor:
        """The masses of some ids."""
        return self._masses_CP.gather(1, ids_CK).long()

    def remove(self, ids_CK: Tensor, chosen_CK: Tensor) -> None:
        """Set the mass of the chosen ids to 0, so that no point is on them."""
        own_CK = self._masses_CP.gather(1, ids_CK)
        gone_CK = own_CK.masked_fill(~chosen_CK, 0)
        self._masses_CP.scatter_(1, ids_CK, own_CK - gone_CK)
        self._blocks_CB.scatter_add_(1, ids_CK // BLOCK, -gone_CK.long())
        self.total_C = self.total_C - gone_CK.sum(dim=1)

    def find(self, points_CS: Tensor) -> Tensor:
        """The ids at points from 0 to below the total, along the cumulative sum of the masses."""
        chunk = self._chunk
        ends_CB = self._blocks_CB.cumsum(dim=1)
        block_CS = torch.searchsorted(ends_CB, points_CS, right=True).clamp_(max=chunk.n_blocks - 1)
        left_CS = points_CS - ends_CB.gather(1, block_CS) + self._blocks_CB.gather(1, block_CS)
        ends_CSP = chunk.in_blocks(self._masses_CP, block_CS).cumsum(dim=2)
        inside_CS = torch.searchsorted(ends_CSP, left_CS[:, :, None], right=True).squeeze(2)
        return (block_CS * BLOCK + inside_CS).clamp_(max=chunk.vocabulary_size - 1)


def _exact_sums(masses_CBP: Tensor, rounded_CBP: Tensor) -> Tensor:
    """Sums in int64 without a copy in int64: their lower 32 bits exactly, those above from sums in float32.

    64 masses add up to 2^36 at most, in float32 within 2^18.
    """
    low_CB = masses_CBP.sum(dim=2, dtype=torch.int32).long()
    return low_CB + ((rounded_CBP.sum(dim=2).double() - low_CB) / (1 << 32)).round().long() * (1 << 32)
