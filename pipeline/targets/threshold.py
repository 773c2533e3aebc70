"""Kind `threshold`: exact where p >= tau', the rest by systematic sampling, each draw standing for tau'.

In: a chunk at the target temperature. Out: the ids that it keeps.
"""

import math

import torch
from torch import Tensor

from kdpipe.pipeline.targets.chunk import KeptEntries, LogitChunk
from kdpipe.pipeline.targets.draws import below
from kdpipe.pipeline.targets.masses import LARGEST_MASS, SMALLEST_TAIL, Masses
from kdpipe.schemas.targets import Threshold

# A sum of rounded masses may exceed a whole number by this before one more entry is added; tau' may then exceed tau by
# half of it, relatively, and an id between the two is drawn that much too rarely.
COUNT_TOLERANCE = 2.0**-14
# Room above the largest tau' of a row whose number of entries is capped.
HEADROOM = 1 + 2.0**-10
# exp may be out of order by some units in the last place: an id that is not exact is larger by at most this.
MASS_TOLERANCE = 1 << 10


class ThresholdSampler:
    """Few ids where the teacher is certain, more where it is not."""

    def __init__(self, keep: Threshold, vocabulary_size: int) -> None:
        self._tau = keep.tau
        self._most = min(keep.max_entries, vocabulary_size)
        self._is_capped = keep.max_entries * keep.tau < 1
        self._cap = HEADROOM / keep.max_entries if self._is_capped else keep.tau
        self.width = min(self._most, math.ceil(1 / keep.tau) + 1)

    def keep(self, chunk: LogitChunk, keys_C: Tensor) -> KeptEntries:
        """Pick the exact ids, then one id at each of evenly spaced points of the tail."""
        masses = Masses(chunk, LARGEST_MASS / self._cap / chunk.total_C)
        n_C1 = self._wanted(chunk, masses).clamp(min=min(2, self._most), max=self.width)[:, None]
        slots = torch.arange(self.width, device=keys_C.device)
        ids_CK = chunk.top(self.width)
        own_CK = masses.of(ids_CK)
        tail_CK = masses.total_C[:, None] - own_CK.cumsum(dim=1) + own_CK
        shared = (slots >= 1) & (slots < n_C1) & ((own_CK + MASS_TOLERANCE) * (n_C1 - slots) <= tail_CK)
        n_exact_C1 = torch.where(shared, slots, n_C1).amin(dim=1, keepdim=True)
        masses.remove(ids_CK, slots < n_exact_C1)
        tail_C1 = masses.total_C[:, None]
        drawn = tail_C1 > SMALLEST_TAIL * LARGEST_MASS / self._cap
        n_draws_C1 = torch.where(drawn, n_C1 - n_exact_C1, 0)
        points_CK = _points(keys_C[:, None], tail_C1.clamp(min=1), n_draws_C1.clamp(min=1), slots - n_exact_C1)
        return KeptEntries(
            n_exact_C=n_exact_C1.squeeze(1),
            n_draws_C=n_draws_C1.squeeze(1),
            ids_CK=torch.where(slots < n_exact_C1, ids_CK, masses.find(points_CK)),
        )

    def _wanted(self, chunk: LogitChunk, masses: Masses) -> Tensor:
        """The number of entries before clamping; read from the masses when tau itself is their cap."""
        if self._is_capped:
            torch.mul(chunk.powers_CP, (1 / self._tau / chunk.total_C)[:, None], out=chunk.spare_CP)
            wanted_C = chunk.spare_CP.clamp_(max=1.0).sum(dim=1).double()
        else:
            wanted_C = masses.total_C.double() / LARGEST_MASS
        return (wanted_C - COUNT_TOLERANCE).ceil().long()


def _points(keys_C1: Tensor, total_C1: Tensor, n_C1: Tensor, number_CK: Tensor) -> Tensor:
    """Point i of n is (i * total + offset) // n, with one offset per row; no product exceeds 2^63."""
    offset_C1 = below(keys_C1, torch.zeros_like(keys_C1), total_C1)
    number_CK = torch.minimum(number_CK.clamp(min=0), n_C1 - 1)
    step_C1, over_C1 = total_C1 // n_C1, total_C1 % n_C1
    return number_CK * step_C1 + (number_CK * over_C1 + offset_C1) // n_C1
