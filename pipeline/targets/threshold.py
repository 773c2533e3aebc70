"""Kind `threshold`: exact where p >= tau', the rest by systematic sampling, each draw standing for tau'.

In: a chunk at the target temperature. Out: the ids that it keeps.
"""

import math

import numpy as np
import torch
from torch import Tensor

from kdpipe.pipeline.targets.chunk import KeptEntries, LogitChunk
from kdpipe.pipeline.targets.draws import below
from kdpipe.pipeline.targets.masses import LARGEST_MASS, SMALLEST_TAIL, Masses
from kdpipe.pipeline.targets.stored_entries import EntryChoice, Longs, PaddedEntries
from kdpipe.pipeline.targets.stored_entries import slots as slot_numbers
from kdpipe.schemas.target_kinds import Threshold

# A sum of rounded masses may exceed a whole number by this before one more entry is added; tau' may then exceed tau by
# half of it, relatively, and an id between the two is drawn that much too rarely.
COUNT_TOLERANCE = 2.0**-14
# Room above the largest tau' of a row whose number of entries is capped.
HEADROOM = 1 + 2.0**-10
# exp may be out of order by some units in the last place: an id that is not exact is larger by at most this.
MASS_TOLERANCE = 1 << 10
# Weights of stored entries are integers of this unit, which makes drawing exact; 4,096 entries add up to at most 2^52.
WHOLE = 1 << 40


class ThresholdSampler:
    """Few ids where the teacher is certain, more where it is not."""

    def __init__(self, keep: Threshold, vocabulary_size: int) -> None:
        self._record, self._tau = keep, keep.tau
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

    def resample(self, entries: PaddedEntries, keys_R: Longs) -> EntryChoice:
        """Choose from stored entries, as `keep` does from the vocabulary."""
        return resample_by_threshold(entries, keys_R, self._record)

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


def resample_by_threshold(entries: PaddedEntries, keys_R: Longs, keep: Threshold) -> EntryChoice:
    """Keep entries with a weight of at least the new tau', and sample the others (draws included) systematically.

    The new tau' solves sum of min(1, w / tau') = n over the entries, as `cache-teacher` does over the vocabulary; draws
    are always below it, since each has the weight of the old tau'. A row of at most n entries is unchanged.
    """
    slots = slot_numbers(entries)
    masses = np.rint(np.where(slots < entries.counts[:, None], entries.weights_RK, 0.0) * WHOLE).astype(np.int64)
    n_R = np.minimum(_wanted_of_stored(entries, keep), entries.counts)
    tails, heaviest = _from_behind(masses, np.add), _from_behind(masses, np.maximum)
    may_share = (slots >= 1) & (heaviest * (n_R[:, None] - slots) <= tails)
    may_share |= slots >= entries.n_exact_R[:, None]
    n_exact_R = np.where(may_share.any(axis=1), may_share.argmax(axis=1), entries.n_exact_R)
    unchanged_R = n_R >= entries.counts
    n_exact_R = np.where(unchanged_R, entries.n_exact_R, np.minimum(n_exact_R, n_R))
    light = np.where(slots >= n_exact_R[:, None], masses, 0)
    is_drawn = ~unchanged_R & (light.sum(axis=1) > SMALLEST_TAIL * WHOLE)
    n_draws_R = np.where(unchanged_R, entries.n_draws_R, np.where(is_drawn, n_R - n_exact_R, 0))
    drawn = _systematic(light, entries.order_RK, keys_R, np.where(is_drawn, n_draws_R, 0))
    own = np.take_along_axis(drawn, np.maximum(slots - n_exact_R[:, None], 0), axis=1)
    keeps_slot = unchanged_R[:, None] | (slots < n_exact_R[:, None])
    return EntryChoice(
        n_exact_R=n_exact_R,
        n_draws_R=n_draws_R,
        slots_RK=np.where(keeps_slot, slots, own),
        times_RK=np.ones(masses.shape, np.int64),
    )


def _wanted_of_stored(entries: PaddedEntries, keep: Threshold) -> Longs:
    """The target number of entries per row, by the rule of `cache-teacher`."""
    is_entry = slot_numbers(entries) < entries.counts[:, None]
    shares = np.where(is_entry, np.minimum(entries.weights_RK / keep.tau, 1.0), 0.0)
    wanted: Longs = np.ceil(shares.sum(axis=1) - COUNT_TOLERANCE).astype(np.int64)
    most = min(keep.max_entries, math.ceil(1 / keep.tau) + 1)
    return np.clip(wanted, min(2, keep.max_entries), most)


def _from_behind(values: Longs, how: np.ufunc) -> Longs:
    """The reverse cumulative sum or maximum of each row."""
    accumulated: Longs = how.accumulate(values[:, ::-1], axis=1)[:, ::-1]
    return accumulated


def _systematic(masses_RK: Longs, order_RK: Longs, keys_R: Longs, n_R: Longs) -> Longs:
    """Systematic sampling: the slots at n evenly spaced points of each row's masses in `order`, with a random offset.

    No mass exceeds the distance between two points, so no slot is drawn twice.
    """
    laid_out = np.argsort(np.where(masses_RK > 0, order_RK, np.iinfo(np.int64).max), axis=1, kind="stable")
    ends = np.cumsum(np.take_along_axis(masses_RK, laid_out, axis=1), axis=1)
    total_R1 = torch.from_numpy(np.maximum(ends[:, -1:], 1))
    keys_R1 = torch.from_numpy(keys_R)[:, None]
    offset_R1 = below(keys_R1, torch.zeros_like(keys_R1), total_R1).numpy()
    numbers = np.arange(masses_RK.shape[1])
    points = (numbers * total_R1.numpy() + offset_R1) // np.maximum(n_R, 1)[:, None]
    hits = np.stack([np.searchsorted(end, point, side="right") for end, point in zip(ends, points, strict=True)])
    drawn: Longs = np.take_along_axis(laid_out, np.minimum(hits, masses_RK.shape[1] - 1), axis=1)
    return drawn
