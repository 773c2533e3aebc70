"""Two countermeasures against memorized draws, as replacements for a run's loader.

In: caches of one teacher and one text. Out: batches with other targets. `SetsInTurn` uses another set of draws in each
epoch; `PriorMixed` gives a share of the tail to the frequency of ids, sampled again whenever a row is read.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.cache import Cache
from kdpipe.pipeline.batches.batch_order import Ordering
from kdpipe.pipeline.batches.collate import BatchContents
from kdpipe.pipeline.batches.micro_batch import MicroBatch, StepBatch, Targets
from kdpipe.pipeline.batches.prefetch import StepLoader

# Sampled ids of the prior per row.
PRIOR_DRAWS = 16


class SetsInTurn:
    """Batches of several caches that differ only in the seed of their draws, one cache per epoch."""

    def __init__(self, caches: Sequence[Cache], batch_size: int) -> None:
        if len({tuple(cache.lengths().tolist()) for cache in caches}) != 1:
            raise ValueError("the caches hold different sequences")
        self._loaders = [StepLoader(cache, BatchContents(targets=True), batch_size=batch_size) for cache in caches]

    @property
    def waited_seconds(self) -> float:
        """Total waiting time of `take`."""
        return sum(loader.waited_seconds for loader in self._loaders)

    def take(self, begin: int, end: int, order: Ordering) -> StepBatch:
        """The batches of places begin to end, split at the end of an epoch."""
        batches: list[MicroBatch] = []
        first, n = begin, len(order)
        while first < end:
            last = min(end, (first // n + 1) * n)
            batches += self._loaders[first // n % len(self._loaders)].take(first, last, order).batches
            first = last
        return StepBatch(batches=tuple(batches), begin=begin, end=end)

    def close(self) -> None:
        """Stop all loader threads."""
        for loader in self._loaders:
            loader.close()


class PriorMixed:
    """Batches in which the prior gets `share` of each row's tail, over ids that are not stored."""

    def __init__(self, loader: StepLoader, share: float, prior_V: npt.NDArray[np.float64], seed: int) -> None:
        self._loader, self._share, self._prior_V = loader, share, prior_V
        self._random = np.random.default_rng(seed)

    @property
    def waited_seconds(self) -> float:
        """Of the loader."""
        return self._loader.waited_seconds

    def take(self, begin: int, end: int, order: Ordering) -> StepBatch:
        """The batches of places begin to end."""
        step = self._loader.take(begin, end, order)
        batches = tuple(replace(batch, targets=self._mixed(batch.targets)) for batch in step.batches)
        return replace(step, batches=batches)

    def _mixed(self, targets: Targets | None) -> Targets:
        assert targets is not None and targets.log_tail_N is not None
        n = len(targets.count_N)
        drawn = self._random.choice(len(self._prior_V), size=(n, PRIOR_DRAWS), p=self._prior_V)
        return with_prior(targets, torch.from_numpy(drawn), self._share)


def with_prior(targets: Targets, drawn_NM: torch.Tensor, share: float) -> Targets:
    """Scale draws by 1 - share, and append prior ids that are not in the row."""
    tail_N = targets.log_tail_N
    assert tail_N is not None
    count_N, n_exact_N = targets.count_N, targets.n_exact_N
    sorted_NM = drawn_NM.sort(dim=1).values
    new_NM = torch.ones_like(sorted_NM, dtype=torch.bool)
    new_NM[:, 1:] = sorted_NM[:, 1:] != sorted_NM[:, :-1]
    new_NM &= ~(sorted_NM[:, :, None] == targets.ids_NK[:, None, :]).any(dim=2)
    # Rows without draws have a negligible tail.
    new_NM &= (count_N > n_exact_N)[:, None]
    n_new_N = new_NM.sum(dim=1)
    k, m = targets.ids_NK.shape[1], int(n_new_N.max())
    order_NM = (~new_NM).to(torch.int8).argsort(dim=1, stable=True)[:, :m]
    ids_NM, kept_NM = sorted_NM.gather(1, order_NM), new_NM.gather(1, order_NM)
    places_NM = (count_N[:, None] + torch.arange(m))[kept_NM]
    rows_NM = torch.arange(len(count_N))[:, None].expand(-1, m)[kept_NM]
    n = len(count_N)
    ids_NK = torch.cat([targets.ids_NK, targets.ids_NK[:, :1].expand(n, m)], dim=1).clone()
    weights_NK = torch.cat([targets.weights_NK, targets.weights_NK.new_zeros(n, m)], dim=1)
    logprobs_NK = torch.cat([targets.logprobs_NK, targets.logprobs_NK.new_full((n, m), -torch.inf)], dim=1)
    slots_K = torch.arange(k + m)
    is_draw_NK = (slots_K >= n_exact_N[:, None]) & (slots_K < count_N[:, None])
    scale_N = torch.where(n_new_N > 0, 1 - share, 1.0)
    weights_NK = torch.where(is_draw_NK, weights_NK * scale_N[:, None], weights_NK)
    ids_NK[rows_NM, places_NM] = ids_NM[kept_NM].to(ids_NK.dtype)
    each_N = share * tail_N.exp() / n_new_N.clamp(min=1)
    weights_NK[rows_NM, places_NM] = each_N[rows_NM].to(weights_NK.dtype)
    changes: dict[str, Any] = {"ids_NK": ids_NK, "weights_NK": weights_NK, "logprobs_NK": logprobs_NK}
    return replace(targets, count_N=count_N + n_new_N, **changes)


def unigram(cache: Cache) -> npt.NDArray[np.float64]:
    """Frequencies of ids in the text of a cache, with add-one smoothing."""
    counts = np.ones(cache.manifest.vocabulary_size, np.float64)
    for number in range(len(cache)):
        counts += np.bincount(cache.tokens(number).tokens, minlength=len(counts))
    return counts / counts.sum()
