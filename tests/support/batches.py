"""Batches compared, tensor by tensor.

In: two micro-batches. Out: an AssertionError that names what differs.
"""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from kdpipe.pipeline.batches.micro_batch import MicroBatch, StepBatch, Targets


def equal_steps(one: StepBatch, other: StepBatch) -> None:
    """Both steps hold the same, to the bit."""
    assert (one.begin, one.end, len(one.batches)) == (other.begin, other.end, len(other.batches))
    for batch, same in zip(one.batches, other.batches, strict=True):
        equal_batches(batch, same)


def equal_batches(one: MicroBatch | Targets, other: MicroBatch | Targets) -> None:
    """Both hold the same, to the bit."""
    for field in fields(one):
        _equal(getattr(one, field.name), getattr(other, field.name), field.name)


def _equal(one: Any, other: Any, name: str) -> None:
    assert type(one) is type(other), name
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype, name
        assert torch.equal(torch.nan_to_num(one, nan=123.0), torch.nan_to_num(other, nan=123.0)), name
    elif isinstance(one, Targets):
        equal_batches(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other), name
        for key in one:
            _equal(one[key], other[key], f"{name}[{key}]")
    else:
        assert one == other, name
