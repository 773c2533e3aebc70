"""Targets: each kind picks ids of a distribution, `reduce.py` adds the scalars that all kinds share.

In: logits of some rows on any device, labels and random keys. Out: a `ReducedRows`, which `reduce.py` turns into a
block. A new kind is a record, a sampler and a row of `schemas/member_tables.py`.
"""

from importlib import import_module
from typing import Any, Protocol

from torch import Tensor

from kdpipe.pipeline.targets.chunk import KeptEntries, LogitChunk
from kdpipe.pipeline.targets.stored_entries import EntryChoice, Longs, PaddedEntries
from kdpipe.schemas.member_tables import TARGET_KINDS
from kdpipe.schemas.targets import KeptSpec


class Sampler(Protocol):
    """Picks the ids of a row that a kind of target keeps."""

    @property
    def width(self) -> int:
        """The most ids per row."""
        ...

    def keep(self, chunk: LogitChunk, keys_C: Tensor) -> KeptEntries:
        """Pick exact ids and draws for every row of a chunk at the target temperature."""
        ...


class Resampler(Protocol):
    """Picks entries for a smaller target of the same kind; samplers of kinds that can be requantized are one."""

    def resample(self, entries: PaddedEntries, keys_R: Longs) -> EntryChoice:
        """Pick among the stored entries of every row."""
        ...


def sampler(keep: KeptSpec, vocabulary_size: int) -> Sampler | None:
    """The sampler of a kind; None for a kind without ids."""
    return None if (location := TARGET_KINDS[keep.kind].sampler) is None else _imported(location)(keep, vocabulary_size)


def resampler(keep: KeptSpec) -> Resampler:
    """The same class, for a kind that can be requantized."""
    location = TARGET_KINDS[keep.kind].sampler
    if location is None:
        raise TypeError(f"targets of kind {keep.kind} are not resampled")
    chosen: Resampler = _imported(location)(keep, keep.max_entries)
    return chosen


def _imported(location: str) -> Any:
    module, _, name = location.partition(":")
    return getattr(import_module(module), name)
