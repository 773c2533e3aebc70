"""One optimizer step, up to the point where it is judged: forward and backward of its micro-batches, norm, findings.

In: a `Learner`, a `StepBatch`, the terms in force. Out: a `Took`, with gradients in place.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kdpipe.pipeline.batches.micro_batch import StepBatch
from kdpipe.pipeline.losses.terms import InForce, TermName, factor
from kdpipe.pipeline.training.diagnosis import diagnose
from kdpipe.pipeline.training.guard import Finding
from kdpipe.pipeline.training.train_state import Learner


@dataclass(frozen=True, slots=True, kw_only=True)
class TermNews:
    """A term at a step: its mean raw value, its weight, what it adds to the loss, and the rows or groups it has."""

    raw: float
    weight: float
    weighted: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Took:
    """What came of a step: the norm is before clipping, NaN or infinite where the gradient is; `shapes` in words."""

    loss: float
    terms: dict[TermName, TermNews]
    gradient_norm: float
    findings: tuple[Finding, ...]
    positions: int
    tokens: int
    shapes: str
    logged: dict[str, float]


def go_forth_and_back(learner: Learner, batch: StepBatch, terms: InForce) -> Took:
    """Compute the gradient of a step over all of its micro-batches."""
    objective = learner.objective
    counts = objective.counts(batch.batches, terms)
    sums: dict[TermName, Tensor] = {}
    logged: dict[str, Tensor] = {}
    tokens = 0
    for micro in batch.batches:
        there = micro.to(learner.device)
        tokens += int((micro.document_BT >= 0).sum())
        with learner.precision.autocast(learner.device):
            states = learner.student.states(there, objective.layers)
            outcome = objective(states, there, terms, counts)
        if outcome.total.requires_grad:
            scaled = outcome.total if learner.scaler is None else learner.scaler.scale(outcome.total)
            scaled.backward()  # type: ignore[no-untyped-call]  # torch
        for name, value in outcome.sums.items():
            sums[name] = sums[name] + value if name in sums else value
        logged |= outcome.logged
    norm = _gradient_norm(learner)
    news = _news(sums, terms, counts)
    loss = sum(one.weighted for one in news.values())
    # A sum of numbers that are none is none: two numbers say whether all are finite.
    fine = bool(torch.tensor([loss, norm], dtype=torch.float64).isfinite().all())
    return Took(
        loss=loss,
        terms=news,
        gradient_norm=norm,
        findings=() if fine else diagnose(learner, batch, terms, counts),
        positions=batch.n_positions,
        tokens=tokens,
        shapes=_shapes(batch),
        logged={name: float(value) for name, value in logged.items()},
    )


def apply(learner: Learner, took: Took, clip: float) -> None:
    """Clip the gradient and let the optimizer take its step; where no row was to be learnt there is none to take."""
    if all(parameter.grad is None for parameter in learner.learnt):
        return
    torch.nn.utils.clip_grads_with_norm_(learner.learnt, clip, torch.tensor(took.gradient_norm))
    if learner.scaler is None:
        learner.optimizer.step()
    else:
        learner.scaler.step(learner.optimizer)
        learner.scaler.update()
    learner.optimizer.zero_grad(set_to_none=True)


def drop(learner: Learner) -> None:
    """Forget a gradient: nothing moves, decays or gathers momentum; a scale of the loss learns of its overflow."""
    learner.optimizer.zero_grad(set_to_none=True)
    if learner.scaler is not None:
        learner.scaler.update()


def _shapes(batch: StepBatch) -> str:
    """What the first micro-batch looks like: tokens, the entries of its rows, states."""
    first = batch.batches[0]
    told = [f"tokens {list(first.tokens_BT.shape)}"]
    if first.targets is not None and first.targets.state_NH is not None:
        told.append(f"states {list(first.targets.state_NH.shape)}")
    elif first.targets is not None:
        told.append(f"entries {list(first.targets.ids_NK.shape)}")
    told += [f"layer {layer} {list(states.shape)}" for layer, states in first.hidden.items()]
    told += [f"pooled layer {layer} {list(states.shape)}" for layer, states in first.pooled.items()]
    return f"{len(batch.batches)} x ({', '.join(told)})"


def _gradient_norm(learner: Learner) -> float:
    gradients = [parameter.grad for parameter in learner.learnt if parameter.grad is not None]
    if not gradients:
        return 0.0
    if learner.scaler is not None:
        learner.scaler.unscale_(learner.optimizer)
    return float(torch.nn.utils.get_total_norm(gradients))


def _news(sums: Mapping[TermName, Tensor], terms: InForce, counts: Mapping[TermName, int]) -> dict[TermName, TermNews]:
    found = {}
    for name, value in sums.items():
        raw = float(value) / max(1, counts[name])
        weight = terms.weights[name]
        weighted = weight * factor(name, 1.0 if name == "ce" else terms.temperature) * raw
        found[name] = TermNews(raw=raw, weight=weight, weighted=weighted, count=counts[name])
    return found
