"""Which positions a term is taken over: of each sequence, the share with the lowest or highest of a statistic.

In: a `PositionSelection`, a `MicroBatch`, and what the head says of its rows where the student is asked. Out: a mask of
the rows, and how many it will hold, known before any student has spoken.
"""

from typing import Protocol

import torch
from torch import Tensor

from kdpipe.pipeline.batches.micro_batch import MicroBatch
from kdpipe.schemas.errors import Incompatible
from kdpipe.schemas.train_settings import PositionSelection


class StudentStatistics(Protocol):
    """What a student said of each row."""

    @property
    def entropy_N(self) -> Tensor:  # noqa: N802  # a shape suffix
        """In nats."""
        ...

    @property
    def cross_entropy_N(self) -> Tensor:  # noqa: N802  # a shape suffix
        """Of the label, in nats."""
        ...


def n_chosen(selection: PositionSelection, batch: MicroBatch) -> int:
    """How many rows of a batch are chosen."""
    return int(_quota(selection, batch).sum())


def chosen(selection: PositionSelection, batch: MicroBatch, spoken: StudentStatistics | None) -> Tensor:
    """Mark the chosen rows; of equal ones the earlier are taken, and what is not a number comes last."""
    values_N = _statistic(selection, batch, spoken).double()
    if selection.keep == "highest":
        values_N = -values_N
    by_value = torch.argsort(values_N, stable=True)
    order_N = by_value[torch.argsort(batch.sequence_N[by_value], stable=True)]
    sequence_N = batch.sequence_N[order_N]
    sizes_B = torch.bincount(sequence_N, minlength=len(batch.numbers))
    rank_N = torch.arange(len(order_N), device=order_N.device) - (sizes_B.cumsum(0) - sizes_B)[sequence_N]
    mask_N = torch.zeros(len(order_N), dtype=torch.bool, device=order_N.device)
    mask_N[order_N] = rank_N < _quota(selection, batch)[sequence_N]
    return mask_N


def _quota(selection: PositionSelection, batch: MicroBatch) -> Tensor:
    """Rows of each sequence that are chosen: the share of its rows, rounded, and one at least."""
    sizes_B = torch.bincount(batch.sequence_N, minlength=len(batch.numbers))
    rounded_B = torch.floor(sizes_B.double() * selection.share + 0.5).long()
    return torch.minimum(sizes_B, rounded_B.clamp(min=1))


def _statistic(selection: PositionSelection, batch: MicroBatch, spoken: StudentStatistics | None) -> Tensor:
    found = {
        "teacher_entropy": batch.teacher_entropy_N,
        "label_logprob": batch.label_logprob_N,
        "student_entropy": None if spoken is None else spoken.entropy_N,
        "student_cross_entropy": None if spoken is None else spoken.cross_entropy_N,
    }[selection.by]
    if found is None:
        raise not_held(selection)
    return found


def not_held(selection: PositionSelection) -> Incompatible:
    """What is said where a cache does not hold the statistic."""
    return Incompatible(
        f"positions are to be chosen by {selection.by}, which this cache does not hold",
        hint="choose by student_entropy or student_cross_entropy in losses.select",
    )
