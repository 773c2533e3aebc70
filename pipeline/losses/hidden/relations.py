"""Relations: similarities between positions of a document, and between documents of a group, in student and teacher.

In: unit states of both and the pairs to compare. Out: the sum over pairs of (cos_student - cos_teacher)^2. No map is
needed: each side is compared with itself, and random projections nearly preserve cosines. Every pair of a step has the
same weight.
"""

import torch
from torch import Tensor

from kdpipe.pipeline.losses.hidden.grouping import Anchors


def position_relations(student_NH: Tensor, teacher_NW: Tensor, anchors: Anchors) -> Tensor:
    """The sum over pairs of anchors of one document, with unit rows."""
    difference_BAA = _cosines(student_NH[anchors.rows_BA]) - _cosines(teacher_NW[anchors.rows_BA])
    return torch.where(anchors.pairs_BAA, difference_BAA, 0.0).square().sum()


def document_relations(student_DH: Tensor, teacher_DW: Tensor, bounds: list[tuple[int, int]]) -> Tensor:
    """The sum over pairs of documents of one group, with unit rows."""
    total = student_DH.new_zeros(())
    for start, end in bounds:
        difference_DD = _cosines(student_DH[start:end]) - _cosines(teacher_DW[start:end])
        total = total + difference_DD.triu(diagonal=1).square().sum()
    return total


def n_pairs(bounds: list[tuple[int, int]]) -> int:
    """The number of pairs within the groups."""
    return sum((end - start) * (end - start - 1) // 2 for start, end in bounds)


def _cosines(units: Tensor) -> Tensor:
    return units @ units.transpose(-1, -2) / units.shape[-1]
