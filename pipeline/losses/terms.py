"""The terms of the objective, by name, and what is in force at a step.

In: the table of losses. Out: `LogitTerm`s for `head_chunks.py`, `ActiveTerms` for the objective. A term adds weight *
factor * (sum over its rows) / count, where the factor is a power of the temperature (see `LogitLoss`) and the count is
that of its rows in the whole optimizer step.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Final

from kdpipe.schemas.losses import HIDDEN_LOSSES, LOGIT_LOSSES, LOSSES, LogitLoss

if TYPE_CHECKING:
    from torch import Tensor

# Keys of the table of losses.
LogitName = str
HiddenName = str
TermName = str
LOGIT_NAMES: Final[tuple[LogitName, ...]] = tuple(LOGIT_LOSSES)
HIDDEN_NAMES: Final[tuple[HiddenName, ...]] = tuple(HIDDEN_LOSSES)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOptions:
    """Options of the formulas; `tail_weight` 0 treats the tail as one bin, 1 is unbiased with draws, above 1 it is
    divided by the sequence's mean tail mass. Beyond a clamp the gradient is 0."""

    tail_weight: float = 1.0
    skew: float = 0.1
    beta: float = 0.5
    clamp_logits: float | None = None
    clamp_loss: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitTerm:
    """One logit loss: `coefficient` is weight * factor / count; `chosen_N` the rows it is taken over, all if None."""

    name: LogitName
    coefficient: float
    temperature: float = 1.0
    chosen_N: "Tensor | None" = None

    @property
    def loss(self) -> LogitLoss:
        """The loss's entry in the table."""
        return LOGIT_LOSSES[self.name]

    @property
    def needs_targets(self) -> bool:
        """Whether it compares with the teacher, not with the label."""
        return self.loss.compares != "label"


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveTerms:
    """The terms of a step: nonzero weights by name, the temperature of the logit losses, their options."""

    weights: Mapping[TermName, float]
    temperature: float
    options: LossOptions = field(default_factory=LossOptions)


def factor(name: TermName, temperature: float) -> float:
    """The factor of a term at a temperature."""
    return LOSSES[name].factor(temperature)


@cache
def function_of(path: str) -> "Callable[..., Tensor]":
    """The function of a loss, imported on first use."""
    function: Callable[..., Tensor] = resolve_name(path)
    return function
