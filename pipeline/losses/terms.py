"""The terms of the objective, by name, and what is in force at a step.

In: `Losses` and the phase of the run. Out: `LogitTerm`s for `head.py`, `HiddenTerm`s for `hidden/`. A term adds weight
* factor * (sum over its rows) / count, where factor is T squared for KL, skew and JSD, T for total variation, 1
otherwise, and count is that of its rows in the whole optimizer step.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from torch import Tensor

from kdpipe.schemas.choices import LogitLoss

LogitName = Literal["ce", LogitLoss]
HiddenName = Literal[
    "cosine", "correlation", "mse", "position_relations", "document_relations", "cka", "router_balance"
]
TermName = LogitName | HiddenName
LOGIT_NAMES: Final[tuple[LogitName, ...]] = (
    "ce",
    "forward_kl",
    "skew_kl",
    "reverse_kl",
    "jsd",
    "total_variation",
    "renormalized",
)
HIDDEN_NAMES: Final[tuple[HiddenName, ...]] = (
    "cosine",
    "correlation",
    "mse",
    "position_relations",
    "document_relations",
    "cka",
    "router_balance",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOptions:
    """The numbers that formulas take; `tail_weight` 0 is a bucket, 1 exact by draws, above 1 divided by the
    sequence's mean tail mass. Clamps are for those who ask: beyond them nothing is learnt."""

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
    chosen_N: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveTerms:
    """What counts at a step: weights by term without the zeros, the temperature of the logit losses, their shape."""

    weights: Mapping[TermName, float]
    temperature: float
    shape: LossOptions = field(default_factory=LossOptions)


def factor(name: TermName, temperature: float) -> float:
    """What a term is multiplied with so that its gradient does not shrink as the temperature grows."""
    if name in ("forward_kl", "skew_kl", "reverse_kl", "jsd", "renormalized"):
        return temperature**2
    return temperature if name == "total_variation" else 1.0
