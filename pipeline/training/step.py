"""One optimizer step: forward and backward of its micro-batches, then `apply` or `drop` once the guard has judged it.

In: a `TrainState`, a `StepBatch`, the active terms. Out: a `StepResult`, with gradients in place.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kdpipe.pipeline.batches.micro_batch import StepBatch
from kdpipe.pipeline.losses.terms import ActiveTerms, TermName, factor
from kdpipe.pipeline.training.diagnosis import diagnose
from kdpipe.pipeline.training.guard import NotFiniteFinding
from kdpipe.pipeline.training.train_state import TrainState


@dataclass(frozen=True, slots=True, kw_only=True)
class TermMetrics:
    """A term of a step: its mean, its weight, its contribution to the loss, and the number of rows or groups."""

    raw: float
    weight: float
    weighted: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """A step before it is judged; the gradient norm is before clipping, and not finite if the gradient is not."""

    loss: float
    terms: dict[TermName, TermMetrics]
    gradient_norm: float
    findings: tuple[NotFiniteFinding, ...]
    positions: int
    tokens: int
    shapes: str
    logged: dict[str, float]


def forward_backward(train_state: TrainState, batch: StepBatch, terms: ActiveTerms) -> StepResult:
    """Compute the gradient of a step over all of its micro-batches."""
    objective = train_state.objective
    counts = objective.counts(batch.batches, terms)
    sums: dict[TermName, Tensor] = {}
    logged: dict[str, Tensor] = {}
    tokens = 0
    for micro in batch.batches:
        there = micro.to(train_state.device)
        tokens += int((micro.document_BT >= 0).sum())
        with train_state.precision.autocast(train_state.device):
            states = train_state.student.states(there, objective.layers)
            outcome = objective(states, there, terms, counts)
        if outcome.total.requires_grad:
            scaled = outcome.total if train_state.scaler is None else train_state.scaler.scale(outcome.total)
            scaled.backward()  # type: ignore[no-untyped-call]  # torch
        for name, value in outcome.sums.items():
            sums[name] = sums[name] + value if name in sums else value
        logged |= outcome.logged
    norm = _gradient_norm(train_state)
    metrics = _term_metrics(sums, terms, counts)
    loss = sum(term.weighted for term in metrics.values())
    # Sums with a value that is not finite are not finite: two numbers suffice to check all.
    finite = math.isfinite(loss) and math.isfinite(norm)
    return StepResult(
        loss=loss,
        terms=metrics,
        gradient_norm=norm,
        findings=() if finite else diagnose(train_state, batch, terms, counts),
        positions=batch.n_positions,
        tokens=tokens,
        shapes=_shapes(batch),
        logged={name: float(value) for name, value in logged.items()},
    )


def apply(train_state: TrainState, result: StepResult, clip: float) -> None:
    """Clip the gradient and make the optimizer step; a batch without rows to train on makes none."""
    if all(parameter.grad is None for parameter in train_state.trained):
        return
    torch.nn.utils.clip_grads_with_norm_(train_state.trained, clip, torch.tensor(result.gradient_norm))
    if train_state.scaler is None:
        train_state.optimizer.step()
    else:
        train_state.scaler.step(train_state.optimizer)
        train_state.scaler.update()
    train_state.optimizer.zero_grad(set_to_none=True)


def drop(train_state: TrainState) -> None:
    """Discard the gradient: nothing is updated but the loss scale, which may have overflowed."""
    train_state.optimizer.zero_grad(set_to_none=True)
    if train_state.scaler is not None:
        train_state.scaler.update()


def _shapes(batch: StepBatch) -> str:
    """Shapes of the first micro-batch: tokens, entries per row, states."""
    first = batch.batches[0]
    parts = [f"tokens {list(first.tokens_BT.shape)}"]
    if first.targets is not None and first.targets.state_NH is not None:
        parts.append(f"states {list(first.targets.state_NH.shape)}")
    elif first.targets is not None:
        parts.append(f"entries {list(first.targets.ids_NK.shape)}")
    parts += [f"layer {layer} {list(states.shape)}" for layer, states in first.hidden.items()]
    parts += [f"pooled layer {layer} {list(states.shape)}" for layer, states in first.pooled.items()]
    return f"{len(batch.batches)} x ({', '.join(parts)})"


def _gradient_norm(train_state: TrainState) -> float:
    gradients = [parameter.grad for parameter in train_state.trained if parameter.grad is not None]
    if not gradients:
        return 0.0
    if train_state.scaler is not None:
        train_state.scaler.unscale_(train_state.optimizer)
    return float(torch.nn.utils.get_total_norm(gradients))


def _term_metrics(
    sums: Mapping[TermName, Tensor], terms: ActiveTerms, counts: Mapping[TermName, int]
) -> dict[TermName, TermMetrics]:
    metrics = {}
    for name, value in sums.items():
        raw = float(value) / max(1, counts[name])
        weight = terms.weights[name]
        weighted = weight * factor(name, 1.0 if name == "ce" else terms.temperature) * raw
        metrics[name] = TermMetrics(raw=raw, weight=weight, weighted=weighted, count=counts[name])
    return metrics
