"""Targets: each kind picks ids of a distribution, `reduce.py` adds the scalars that all kinds share.

In: logits of some rows on any device, labels and random keys. Out: a `ReducedRows`, which `reduce.py` turns into a
block. A new kind is a record in `schemas/targets.py`, a sampler here and a row of `KINDS`.
"""

from importlib import import_module
from typing import Protocol

from torch import Tensor

from kdpipe.pipeline.targets.chunk import KeptEntries, LogitChunk
from kdpipe.schemas.targets import KeptSpec

KINDS = {
    "threshold": "kdpipe.pipeline.targets.threshold:ThresholdSampler",
    "sampled": "kdpipe.pipeline.targets.sampled:DrawSampler",
    "topk": "kdpipe.pipeline.targets.topk:TopKSampler",
    "topp": "kdpipe.pipeline.targets.topp:TopPSampler",
}


class Sampler(Protocol):
    """Picks the ids of a row that a kind of target keeps."""

    @property
    def width(self) -> int:
        """The most ids per row."""
        ...

    def keep(self, chunk: LogitChunk, keys_C: Tensor) -> KeptEntries:
        """Pick exact ids and draws for every row of a chunk at the target temperature."""
        ...


def sampler(keep: KeptSpec, vocabulary_size: int) -> Sampler | None:
    """The sampler of a kind; None for a kind without ids."""
    if not keep.has_entries:
        return None
    module, _, name = KINDS[keep.kind].partition(":")
    chosen: Sampler = getattr(import_module(module), name)(keep, vocabulary_size)
    return chosen
