"""`MicroBatch`: the cached data for one forward pass of a student, as tensors; `StepBatch`: those of one step.

In: sequences of a cache by number. Out: tensors on the CPU, then on the student's device. Suffixes: B sequences, T
tokens, N rows with loss_mask true in order of sequence and position, K cached ids, D documents.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """The teacher at N rows; places beyond a row's `count` repeat its first id with weight 0 and log p -inf.

    The first `n_exact` entries have their log p at T=1; draws have it only in caches made with draw_values
    (`draws_have_values`), else -inf. `weights` is the target at the cache's target temperature. `log_tail` is the mass
    outside the exact entries at T=1 (None: unknown); `state` replaces the entries in caches of that kind.
    """

    ids_NK: Tensor
    weights_NK: Tensor
    logprobs_NK: Tensor
    count_N: Tensor
    n_exact_N: Tensor
    log_tail_N: Tensor | None = None
    entropy_N: Tensor | None = None
    log_z: Mapping[float, Tensor] = field(default_factory=dict)
    state_NH: Tensor | None = None
    target_temperature: float = 1.0
    draws_have_values: bool = False

    def to(self, device: torch.device) -> "Targets":
        """A copy on a device; pinned memory is copied asynchronously."""
        return with_tensors(self, lambda tensor: tensor.to(device, non_blocking=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """B sequences of up to T tokens, right-padded; `document_BT` numbers a sequence's documents from 0, padding is -1;
    `documents` has the split's numbers of each sequence's documents.

    `places_N` are the rows in the flat [B * T], `sequence_N` the sequence of each; `labels_N` the next tokens.
    `hidden` has the rows' cached states by layer, `pooled` the documents' by layer, with `document_D` = (sequence,
    document) of each.
    """

    numbers: tuple[int, ...]
    documents: tuple[tuple[int, ...], ...]
    tokens_BT: Tensor
    document_BT: Tensor
    places_N: Tensor
    sequence_N: Tensor
    labels_N: Tensor
    targets: Targets | None = None
    teacher_entropy_N: Tensor | None = None
    label_logprob_N: Tensor | None = None
    hidden: Mapping[int, Tensor] = field(default_factory=dict)
    pooled: Mapping[int, Tensor] = field(default_factory=dict)
    document_D2: Tensor | None = None

    def to(self, device: torch.device) -> "MicroBatch":
        """A copy on a device; pinned memory is copied asynchronously."""
        return with_tensors(self, lambda tensor: tensor.to(device, non_blocking=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """The micro-batches of one optimizer step; `begin` and `end` are positions in its order."""

    batches: tuple[MicroBatch, ...]
    begin: int
    end: int

    @property
    def n_positions(self) -> int:
        """The number of trained rows."""
        return sum(len(batch.labels_N) for batch in self.batches)

    def to(self, device: torch.device) -> "StepBatch":
        return replace(self, batches=tuple(batch.to(device) for batch in self.batches))


Holder = TypeVar("Holder", Targets, MicroBatch)


def with_tensors(holder: Holder, change: Callable[[Tensor], Tensor]) -> Holder:
    """A copy with `change` applied to every tensor, also in targets and mappings."""
    return replace(holder, **{field.name: _changed(getattr(holder, field.name), change) for field in fields(holder)})


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Targets):
        return with_tensors(value, change)
    if isinstance(value, Mapping):
        return {key: change(tensor) for key, tensor in value.items()}
    return value
