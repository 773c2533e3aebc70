"""Kind `sampled`: the most probable id exactly, and independent draws with replacement from all others.

In: a chunk at the target temperature. Out: the ids that it keeps, and how often each was drawn.
"""

import numpy as np
import torch
from torch import Tensor

from kdpipe.pipeline.targets.chunk import KeptEntries, LogitChunk
from kdpipe.pipeline.targets.draws import below, words
from kdpipe.pipeline.targets.masses import LARGEST_MASS, SMALLEST_TAIL, Masses
from kdpipe.pipeline.targets.stored_entries import EntryChoice, Longs, PaddedEntries
from kdpipe.pipeline.targets.stored_entries import slots as slot_numbers
from kdpipe.schemas.target_kinds import Sampled

# Keeps the scale finite where the most probable id has all the mass; such a row has no draws.
_LEAST_POWER = 1e-28


class DrawSampler:
    """The same number of draws for every row; repeated ids are counted."""

    def __init__(self, keep: Sampled, vocabulary_size: int) -> None:
        self._draws = keep.draws
        self.width = min(keep.draws + 1, vocabulary_size)

    def keep(self, chunk: LogitChunk, keys_C: Tensor) -> KeptEntries:
        """Draw from integer masses, scaled by the second most probable id."""
        top_CK = chunk.top(min(2, chunk.vocabulary_size))
        second_C = chunk.powers_CP.gather(1, top_CK[:, -1:]).squeeze(1).clamp(min=_LEAST_POWER)
        masses = Masses(chunk, LARGEST_MASS / second_C)
        masses.remove(top_CK[:, :1], torch.ones_like(top_CK[:, :1], dtype=torch.bool))
        share_C = masses.total_C.double() * second_C / LARGEST_MASS / chunk.total_C
        counters = torch.arange(self._draws, device=keys_C.device)
        points_CN = below(keys_C[:, None], counters, masses.total_C[:, None].clamp(min=1))
        ids_CK, times_CK, n_C = _counted(masses.find(points_CN), self.width - 1)
        return KeptEntries(
            n_exact_C=torch.ones_like(n_C),
            n_draws_C=torch.where(share_C > SMALLEST_TAIL, n_C, 0),
            ids_CK=torch.cat([top_CK[:, :1], ids_CK], dim=1),
            times_CK=torch.cat([torch.ones_like(top_CK[:, :1]), times_CK], dim=1),
        )

    def resample(self, entries: PaddedEntries, keys_R: Longs) -> EntryChoice:
        """Choose among stored draws."""
        return resample_draws(entries, keys_R, self._draws)


def _counted(ids_CN: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Each id once, ascending, its count, and the number of ids."""
    sorted_CN = ids_CN.sort(dim=1)[0]
    new_CN = torch.ones_like(sorted_CN)
    new_CN[:, 1:] = sorted_CN[:, 1:] != sorted_CN[:, :-1]
    place_CN = new_CN.cumsum(dim=1) - 1
    shape = (len(ids_CN), ids_CN.shape[1])
    ids = ids_CN.new_zeros(shape).scatter_(1, place_CN, sorted_CN)
    times = ids_CN.new_zeros(shape).scatter_add_(1, place_CN, torch.ones_like(sorted_CN))
    return ids[:, :width], times[:, :width], new_CN.sum(dim=1)


def resample_draws(entries: PaddedEntries, keys_R: Longs, draws: int) -> EntryChoice:
    """A uniform sample of a row's independent draws, which are then independent draws again."""
    slots, keys = slot_numbers(entries), torch.from_numpy(keys_R)[:, None]
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
