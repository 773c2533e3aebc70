"""`TrainState`: everything that learns together, put together once by `prepare.py`.

In: nothing of its own. Out: a record that step, diagnosis, checkpoints and evaluation take.
"""

from dataclasses import dataclass

import torch
from torch import nn

from kdpipe.pipeline.losses.objective import Objective
from kdpipe.pipeline.models.precision import Precision
from kdpipe.pipeline.students.student import Student


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainState:
    """A student, what it is told, and what moves it; `model` holds the student and what is learnt beside it."""

    student: Student
    model: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None
    precision: Precision
    device: torch.device

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that move."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]
