"""The rule of each target kind applied to stored entries: which stay exact, which are drawn, which are dropped.

In: the weights of every row's entries, exact ids first, and one random key per row. Out: an `EntryChoice`. Entries are
drawn in proportion to their weights, whose expectation is the teacher's probability; hence so is that of the new ones.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.pipeline.targets.draws import GOLDEN, below, key_of, mixed, words
from kdpipe.pipeline.targets.masses import SMALLEST_TAIL
from kdpipe.pipeline.targets.threshold import COUNT_TOLERANCE
from kdpipe.schemas.targets import Imported, KeptSpec, NoTargets, Sampled, State, Threshold, TopK, TopP

Longs = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]
# Weights are integers of this unit, which makes drawing exact; 4,096 entries add up to at most 2^52.
WHOLE = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedEntries:
    """R rows of up to K entries: exact ids in stored order, then draws, then padding with arbitrary values.

    `weights` are the training weights, `order` sorts a row's draws, `times` counts how often each was drawn.
    """

    n_exact_R: Longs
    n_draws_R: Longs
    weights_RK: Doubles
    order_RK: Longs
    times_RK: Longs

    @property
    def counts(self) -> Longs:
        return self.n_exact_R + self.n_draws_R


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryChoice:
    """Slots of the entries that stay: `n_exact` exact ones, then draws, then padding with arbitrary values."""

    n_exact_R: Longs
    n_draws_R: Longs
    slots_RK: Longs
    times_RK: Longs


def resampler(keep: KeptSpec) -> Callable[[PaddedEntries, Longs], EntryChoice]:
    """The rule of a target kind."""
    match keep:
        case Threshold():
            return lambda entries, keys_R: resample_by_threshold(entries, keys_R, keep)
        case Sampled():
            return lambda entries, keys_R: resample_draws(entries, keys_R, keep.draws)
        case TopK():
            return lambda entries, keys_R: first(entries, np.minimum(entries.n_exact_R, keep.k))
        case TopP():
            return lambda entries, keys_R: first(entries, _reaching(entries, keep.p))
        case State() | Imported() | NoTargets():
            raise AssertionError(f"entries of kind {keep.kind} are not resampled")
        case _:
            assert_never(keep)


def first(entries: PaddedEntries, n_R: Longs) -> EntryChoice:
    """Keep the first `n_R` exact ids, and no draws."""
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
    """The smallest number of exact ids whose mass reaches p, or all."""
    is_exact = _slots(entries) < entries.n_exact_R[:, None]
    reached = np.cumsum(np.where(is_exact, entries.weights_RK, 0.0), axis=1)
    n_R: Longs = np.minimum((reached < p).sum(axis=1) + 1, entries.n_exact_R)
    return n_R


def resample_by_threshold(entries: PaddedEntries, keys_R: Longs, keep: Threshold) -> EntryChoice:
    """Keep entries with a weight of at least the new tau', and sample the others (draws included) systematically.

    The new tau' solves sum of min(1, w / tau') = n over the entries, as `cache-teacher` does over the vocabulary; draws
    are always below it, since each has the weight of the old tau'. A row of at most n entries is unchanged.
    """
    slots = _slots(entries)
    masses = np.rint(np.where(slots < entries.counts[:, None], entries.weights_RK, 0.0) * WHOLE).astype(np.int64)
    n_R = np.minimum(_wanted(entries, keep), entries.counts)
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


def _wanted(entries: PaddedEntries, keep: Threshold) -> Longs:
    """The target number of entries per row, by the rule of `cache-teacher`."""
    is_entry = _slots(entries) < entries.counts[:, None]
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


def resample_draws(entries: PaddedEntries, keys_R: Longs, draws: int) -> EntryChoice:
    """A uniform sample of a row's independent draws, which are then independent draws again."""
    slots, keys = _slots(entries), torch.from_numpy(keys_R)[:, None]
    is_draw = (slots >= entries.n_exact_R[:, None]) & (slots < entries.counts[:, None])
    times = np.where(is_draw, entries.times_RK, 0)
    n_old = int(times.sum(axis=1).max(initial=0))
    kept = np.zeros_like(times)
    if n_old:
        # A random number for every single draw; those with the lowest numbers stay.
        ends = np.cumsum(times, axis=1)
        chance = words(keys, torch.arange(n_old)).numpy()
        singles = np.arange(n_old) < ends[:, -1:]
        chosen = np.argsort(np.where(singles, chance, np.iinfo(np.int64).max), axis=1, kind="stable")[:, :draws]
        owner = np.stack([np.searchsorted(end, draw, side="right") for end, draw in zip(ends, chosen, strict=True)])
        rows = np.flatnonzero(ends[:, -1] > 0)
        np.add.at(kept, (np.repeat(rows, chosen.shape[1]), owner[rows].reshape(-1)), 1)
    stays = kept > 0
    laid_out = np.argsort(np.where(slots < entries.n_exact_R[:, None], slots, np.where(stays, slots, 1 << 30)), axis=1)
    n_draws_R = stays.sum(axis=1)
    times = np.take_along_axis(kept, laid_out, axis=1)
    return EntryChoice(n_exact_R=entries.n_exact_R, n_draws_R=n_draws_R, slots_RK=laid_out, times_RK=times)


def resample_keys(cache_id: str, seed: int, digests: npt.NDArray[np.uint8], lengths: Longs) -> Longs:
    """One random key per row of consecutive documents, from the source, the seed, token digests and positions.

    With the cache_id of the source, new draws are independent of the old ones: with equal keys, an id that was drawn
    once would be drawn again too often.
    """
    words = [int(cache_id[i : i + 15], 16) for i in range(0, 60, 15)]
    halves = torch.from_numpy(np.ascontiguousarray(digests).view("<i8").astype(np.int64).reshape(-1, 2))
    keys = mixed(mixed(key_of(seed, *words) + GOLDEN + halves[:, 0]) + GOLDEN + halves[:, 1])
    starts = np.cumsum(lengths) - lengths
    positions = torch.from_numpy(np.arange(int(lengths.sum())) - np.repeat(starts, lengths))
    keys_R: Longs = mixed(keys.repeat_interleave(torch.from_numpy(lengths)) + GOLDEN + positions).numpy()
    return keys_R
