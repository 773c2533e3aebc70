"""The rules of targets applied to what a cache has kept: which entries stay exact, which are drawn, what goes.

In: the weights of every row's entries, exact ids first, and a key a row. Out: a `EntryChoice` of entries. Whatever is
drawn is drawn with a chance in proportion to its weight, and its weight is what the teacher's probability is on the
mean: so is that of what is drawn again.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.pipeline.targets.draws import GOLDEN, below, key_of, mixed, words
from kdpipe.pipeline.targets.masses import SMALLEST_TAIL
from kdpipe.pipeline.targets.threshold import COUNT_TOLERANCE
from kdpipe.schemas.targets import KeptSpec, Sampled, Threshold, TopK, TopP

Longs = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]
# Weights as whole numbers, in which drawing is exact; of 4,096 entries they add up to 2^52 at most.
WHOLE = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedEntries:
    """R rows of up to K entries: exact ids in the order in which they are kept, then draws; the rest is noise.

    `weights` are those of training, `order` is a number an entry by which a row's draws are laid out; `times` says how
    often each draw was drawn.
    """

    n_exact_R: Longs
    n_draws_R: Longs
    weights_RK: Doubles
    order_RK: Longs
    times_RK: Longs

    @property
    def counts(self) -> Longs:
        """Entries of each row."""
        return self.n_exact_R + self.n_draws_R


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryChoice:
    """Slots of entries that stay: the first `n_exact` are exact, then draws in their order; the rest is noise."""

    n_exact_R: Longs
    n_draws_R: Longs
    slots_RK: Longs
    times_RK: Longs


def resampler(keep: KeptSpec) -> Callable[[PaddedEntries, Longs], EntryChoice]:
    """The rule of a kind."""
    match keep:
        case Threshold():
            return lambda entries, keys_R: resample_by_threshold(entries, keys_R, keep)
        case Sampled():
            return lambda entries, keys_R: resample_draws(entries, keys_R, keep.draws)
        case TopK():
            return lambda entries, keys_R: first(entries, np.minimum(entries.n_exact_R, keep.k))
        case TopP():
            return lambda entries, keys_R: first(entries, _reaching(entries, keep.p))
    raise AssertionError(f"targets of kind {keep.kind} are not made poorer")


def first(entries: PaddedEntries, n_R: Longs) -> EntryChoice:
    """The first so many exact ids, and no draws."""
    return EntryChoice(
        n_exact_R=n_R,
        n_draws_R=np.zeros_like(n_R),
        slots_RK=_slots(entries),
        times_RK=np.zeros(entries.weights_RK.shape, np.int64),
    )


def _slots(entries: PaddedEntries) -> Longs:
    n_rows, width = entries.weights_RK.shape
    return np.broadcast_to(np.arange(width), (n_rows, width))


def _reaching(entries: PaddedEntries, p: float) -> Longs:
    """The fewest exact ids that reach a mass, or all."""
    is_exact = _slots(entries) < entries.n_exact_R[:, None]
    reached = np.cumsum(np.where(is_exact, entries.weights_RK, 0.0), axis=1)
    wanted = (reached < p).sum(axis=1) + 1
    found: Longs = np.minimum(wanted, entries.n_exact_R)
    return found


def resample_by_threshold(entries: PaddedEntries, keys_R: Longs, keep: Threshold) -> EntryChoice:
    """Exact where the weight is at least the new tau', the others, draws among them, by systematic sampling.

    The new tau' solves sum of min(1, w / tau') = n over the entries, as stage one's does over the vocabulary; draws
    weigh less, since each weighs the old tau'. A row that has no more than n entries stays as it is.
    """
    slots = _slots(entries)
    masses = np.rint(np.where(slots < entries.counts[:, None], entries.weights_RK, 0.0) * WHOLE).astype(np.int64)
    n_R = np.minimum(_wanted(entries, keep), entries.counts)
    tails, heaviest = _from_behind(masses, np.add), _from_behind(masses, np.maximum)
    may_share = (slots >= 1) & (heaviest * (n_R[:, None] - slots) <= tails)
    may_share |= slots >= entries.n_exact_R[:, None]
    n_exact_R = np.where(may_share.any(axis=1), may_share.argmax(axis=1), entries.n_exact_R)
    stays_R = n_R >= entries.counts
    n_exact_R = np.where(stays_R, entries.n_exact_R, np.minimum(n_exact_R, n_R))
    light = np.where(slots >= n_exact_R[:, None], masses, 0)
    is_drawn = ~stays_R & (light.sum(axis=1) > SMALLEST_TAIL * WHOLE)
    n_draws_R = np.where(stays_R, entries.n_draws_R, np.where(is_drawn, n_R - n_exact_R, 0))
    drawn = _systematic(light, entries.order_RK, keys_R, np.where(is_drawn, n_draws_R, 0))
    own = np.take_along_axis(drawn, np.maximum(slots - n_exact_R[:, None], 0), axis=1)
    keeps_slot = stays_R[:, None] | (slots < n_exact_R[:, None])
    return EntryChoice(
        n_exact_R=n_exact_R,
        n_draws_R=n_draws_R,
        slots_RK=np.where(keeps_slot, slots, own),
        times_RK=np.ones(masses.shape, np.int64),
    )


def _wanted(entries: PaddedEntries, keep: Threshold) -> Longs:
    """How many entries each row is to have, as stage one counts them."""
    is_entry = _slots(entries) < entries.counts[:, None]
    shares = np.where(is_entry, np.minimum(entries.weights_RK / keep.tau, 1.0), 0.0)
    wanted: Longs = np.ceil(shares.sum(axis=1) - COUNT_TOLERANCE).astype(np.int64)
    most = min(keep.max_entries, math.ceil(1 / keep.tau) + 1)
    return np.clip(wanted, min(2, keep.max_entries), most)


def _from_behind(values: Longs, how: np.ufunc) -> Longs:
    """Sums, or the largest, of each number and all behind it."""
    found: Longs = how.accumulate(values[:, ::-1], axis=1)[:, ::-1]
    return found


def _systematic(masses_RK: Longs, order_RK: Longs, keys_R: Longs, n_R: Longs) -> Longs:
    """The slots at n evenly spaced points of each row's masses, laid out by `order`, with one offset a row.

    No mass is above the distance of two points, so no slot is met twice.
    """
    laid_out = np.argsort(np.where(masses_RK > 0, order_RK, np.iinfo(np.int64).max), axis=1, kind="stable")
    ends = np.cumsum(np.take_along_axis(masses_RK, laid_out, axis=1), axis=1)
    total_R1 = torch.from_numpy(np.maximum(ends[:, -1:], 1))
    keys_R1 = torch.from_numpy(keys_R)[:, None]
    offset_R1 = below(keys_R1, torch.zeros_like(keys_R1), total_R1).numpy()
    numbers = np.arange(masses_RK.shape[1])
    points = (numbers * total_R1.numpy() + offset_R1) // np.maximum(n_R, 1)[:, None]
    met = np.stack([np.searchsorted(end, point, side="right") for end, point in zip(ends, points, strict=True)])
    found: Longs = np.take_along_axis(laid_out, np.minimum(met, masses_RK.shape[1] - 1), axis=1)
    return found


def resample_draws(entries: PaddedEntries, keys_R: Longs, draws: int) -> EntryChoice:
    """So many of a row's draws, each as likely as every other: independent draws, as the old ones were."""
    slots, keys = _slots(entries), torch.from_numpy(keys_R)[:, None]
    is_draw = (slots >= entries.n_exact_R[:, None]) & (slots < entries.counts[:, None])
    times = np.where(is_draw, entries.times_RK, 0)
    n_old = int(times.sum(axis=1).max(initial=0))
    left = np.zeros_like(times)
    if n_old:
        # A number for every single draw; those with the lowest numbers stay.
        ends = np.cumsum(times, axis=1)
        chance = words(keys, torch.arange(n_old)).numpy()
        singles = np.arange(n_old) < ends[:, -1:]
        chosen = np.argsort(np.where(singles, chance, np.iinfo(np.int64).max), axis=1, kind="stable")[:, :draws]
        owner = np.stack([np.searchsorted(end, each, side="right") for end, each in zip(ends, chosen, strict=True)])
        rows = np.flatnonzero(ends[:, -1] > 0)
        np.add.at(left, (np.repeat(rows, chosen.shape[1]), owner[rows].reshape(-1)), 1)
    stays = left > 0
    laid_out = np.argsort(np.where(slots < entries.n_exact_R[:, None], slots, np.where(stays, slots, 1 << 30)), axis=1)
    n_draws_R = stays.sum(axis=1)
    behind = np.take_along_axis(left, laid_out, axis=1)
    return EntryChoice(n_exact_R=entries.n_exact_R, n_draws_R=n_draws_R, slots_RK=laid_out, times_RK=behind)


def resample_keys(cache_id: str, seed: int, digests: npt.NDArray[np.uint8], lengths: Longs) -> Longs:
    """One random key per row of consecutive documents, from their token digests."""
    words = [int(cache_id[i : i + 15], 16) for i in range(0, 60, 15)]
    halves = torch.from_numpy(np.ascontiguousarray(digests).view("<i8").astype(np.int64).reshape(-1, 2))
    keys = mixed(mixed(key_of(seed, *words) + GOLDEN + halves[:, 0]) + GOLDEN + halves[:, 1])
    starts = np.cumsum(lengths) - lengths
    positions = torch.from_numpy(np.arange(int(lengths.sum())) - np.repeat(starts, lengths))
    found: Longs = mixed(keys.repeat_interleave(torch.from_numpy(lengths)) + GOLDEN + positions).numpy()
    return found
