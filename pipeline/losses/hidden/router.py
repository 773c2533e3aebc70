"""`Router`: for each student layer a trainable mixture of the cached teacher layers, which replaces its pair's target.

In: unit vectors of every cached layer. Out: the mixture as a target; a loss that keeps all layers in use; its weights.
A mixture is a softmax over layers, the same for all positions. Layers and mixture have equal size: long states do not
gain weight, and mixing layers that cancel out gains nothing.
"""

import math
from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from kdpipe.pipeline.losses.hidden.pairs import LayerPair
from kdpipe.pipeline.losses.hidden.vectors import unit


@final
class Router(nn.Module):
    """`logits` is [student layers, teacher layers]."""

    def __init__(self, pairs: Sequence[LayerPair], teacher_layers: Sequence[int]) -> None:
        """Every mixture starts with half its weight at the paired layer; the others share the rest."""
        super().__init__()
        self.students = tuple(pair.student for pair in pairs)
        self.teachers = tuple(teacher_layers)
        logits = torch.zeros(len(pairs), len(teacher_layers))
        for row, pair in enumerate(pairs):
            logits[row, self.teachers.index(pair.teacher)] = math.log(len(teacher_layers) - 1)
        self.logits = nn.Parameter(logits)

    def mixtures(self) -> Tensor:
        """The weight of each teacher layer for each student layer."""
        return torch.softmax(self.logits.float(), dim=1)

    def target(self, student: int, teachers: Mapping[int, Tensor]) -> Tensor:
        """The mixture for a student layer, as unit rows."""
        weights_L = self.mixtures()[self.students.index(student)]
        stacked_LNW = torch.stack([teachers[layer] for layer in self.teachers])
        return unit(torch.einsum("l,lnw->nw", weights_L, stacked_LNW))

    def balance(self) -> Tensor:
        """KL(m || uniform) = log L + sum_t m_t log m_t, m the mean mixture over the student's layers."""
        # With logarithms, so that a layer of almost no weight has a finite gradient.
        log_sum_L = torch.log_softmax(self.logits.float(), dim=1).logsumexp(dim=0)
        log_mean_L = log_sum_L - math.log(len(self.students))
        return math.log(len(self.teachers)) + (log_mean_L.exp() * log_mean_L).sum()

    def named_weights(self) -> dict[str, Tensor]:
        """Every weight by name, for the logs."""
        return {
            f"router/student{student}/teacher{teacher}": weight
            for student, row in zip(self.students, self.mixtures().detach(), strict=True)
            for teacher, weight in zip(self.teachers, row, strict=True)
        }
