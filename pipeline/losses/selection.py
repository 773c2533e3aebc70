"""Which positions a term is taken over: in each sequence, the share with the lowest or highest value of a statistic.

In: a `PositionSelection`, a `MicroBatch`, and statistics of the student where selected by these. Out: a mask of the
rows; and their number, which needs no forward pass.
"""

from typing import Protocol

import torch
from torch import Tensor

from kdpipe.pipeline.batches.micro_batch import MicroBatch
from kdpipe.pipeline.losses.exactness import statistic_missing
from kdpipe.pipeline.losses.fused import sum_type
from kdpipe.schemas.train_settings import PositionSelection


class StudentStatistics(Protocol):
    """Statistics of a student's predictions, one value per row, in nats."""

    @property
    def entropy_N(self) -> Tensor:  # noqa: N802  # a shape suffix
        ...

    @property
    def cross_entropy_N(self) -> Tensor:  # noqa: N802  # a shape suffix
        ...


def n_chosen(selection: PositionSelection, batch: MicroBatch) -> int:
    """How many rows of a batch are selected."""
    return int(_quota(selection, batch).sum())


def chosen(selection: PositionSelection, batch: MicroBatch, student: StudentStatistics | None) -> Tensor:
    """A mask of the selected rows; earlier rows win ties, NaN comes last."""
    values_N = _statistic(selection, batch, student)
    values_N = values_N.to(sum_type(values_N))
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
    """The number of selected rows of each sequence: the share of its rows, rounded, at least one."""
    sizes_B = torch.bincount(batch.sequence_N, minlength=len(batch.numbers))
    rounded_B = torch.floor(sizes_B.to(sum_type(sizes_B)) * selection.share + 0.5).long()
    return torch.minimum(sizes_B, rounded_B.clamp(min=1))


def _statistic(selection: PositionSelection, batch: MicroBatch, student: StudentStatistics | None) -> Tensor:
    values = {
        "teacher_entropy": batch.teacher_entropy_N,
        "label_logprob": batch.label_logprob_N,
        "student_entropy": None if student is None else student.entropy_N,
        "student_cross_entropy": None if student is None else student.cross_entropy_N,
    }[selection.by]
    if values is None:
        raise statistic_missing(selection)
    return values
