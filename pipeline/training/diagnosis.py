"""Diagnosis of a step whose loss or gradient is not finite: where that began.

In: the batches of a step, and a `TrainState`. Out: findings in targets, the student's logits, a term, the gradient or
the parameters, with their sequences. Slow, since it runs only on such steps.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from kdpipe.pipeline.batches.micro_batch import MicroBatch, StepBatch, Targets
from kdpipe.pipeline.losses.terms import ActiveTerms, TermName
from kdpipe.pipeline.training.guard import NotFiniteFinding
from kdpipe.pipeline.training.train_state import TrainState

SHOWN = 3


def diagnose(
    train_state: TrainState, batch: StepBatch, terms: ActiveTerms, counts: Mapping[TermName, int]
) -> tuple[NotFiniteFinding, ...]:
    """Find what first becomes not finite between parameters and targets and the gradient."""
    if names := nonfinite_parameters(train_state.model):
        return (NotFiniteFinding(where="parameters", what=names),)
    findings = [finding for micro in batch.batches for finding in _in_batch(train_state, micro, terms, counts)]
    if findings:
        return tuple(findings[:SHOWN])
    names = nonfinite_parameters(train_state.model, gradients=True)
    return (NotFiniteFinding(where="gradient", what=names or "overflow", sequences=_numbers(batch)),)


def nonfinite_parameters(model: nn.Module, *, gradients: bool = False) -> str:
    """The first few names of parameters that are not finite, or whose gradient is not."""
    values = ((name, p.grad if gradients else p) for name, p in model.named_parameters())
    names = [name for name, value in values if value is not None and not bool(value.isfinite().all())]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _in_batch(
    train_state: TrainState, micro: MicroBatch, terms: ActiveTerms, counts: Mapping[TermName, int]
) -> Iterator[NotFiniteFinding]:
    """What first is not finite in a micro-batch: targets, the student's states, or a term."""
    if (invalid := invalid_targets(micro)) is not None:
        yield NotFiniteFinding(where="targets", what=invalid[0], sequences=invalid[1])
        return
    moved = micro.to(train_state.device)
    with torch.no_grad(), train_state.precision.autocast(train_state.device):
        states = train_state.student.states(moved, train_state.objective.layers)
        rows = ~states.rows_NH.isfinite().all(dim=1)
        if bool(rows.any()):
            yield NotFiniteFinding(
                where="logits", what="the student's last state", sequences=_of_rows(micro, rows.cpu())
            )
            return
        statistics = train_state.objective.head.statistics(states.rows_NH, moved.labels_N)
        rows = ~statistics.cross_entropy_N.isfinite()
        if bool(rows.any()):
            yield NotFiniteFinding(where="logits", what="the student's logits", sequences=_of_rows(micro, rows.cpu()))
            return
        sums = train_state.objective(states, moved, terms, counts).sums
    for name, value in sums.items():
        if not bool(value.isfinite()):
            yield NotFiniteFinding(where=name, what="its value", sequences=micro.numbers)


def invalid_targets(micro: MicroBatch) -> tuple[str, tuple[int, ...]] | None:
    """The first invalid value from the cache, and its sequences."""
    checked = [] if micro.targets is None else _valid_rows(micro.targets)
    checked += [(f"hidden state of layer {n}", value.isfinite().all(dim=1)) for n, value in micro.hidden.items()]
    for name, good_N in checked:
        if not bool(good_N.all()):
            return name, _of_rows(micro, ~good_N)
    for layer, value in micro.pooled.items():
        good_D = value.isfinite().all(dim=1)
        if micro.document_D2 is not None and not bool(good_D.all()):
            return f"pooled state of layer {layer}", _sequences(micro, micro.document_D2[~good_D, 0])
    return None


def _valid_rows(targets: Targets) -> list[tuple[str, Tensor]]:
    """The targets by name, and in which rows they are valid; a log of 0 may be -inf."""
    checked: list[tuple[str, Tensor]] = [("weights", targets.weights_NK.isfinite().all(dim=1))]
    kept = targets.logprobs_NK
    checked.append(("log-probabilities", ~(kept.isnan() | (kept > 0.01)).any(dim=1)))
    if targets.log_tail_N is not None:
        checked.append(("log_tail", ~targets.log_tail_N.isnan()))
    if targets.entropy_N is not None:
        checked.append(("entropy", targets.entropy_N.isfinite()))
    checked += [(f"log_z at {t:g}", value.isfinite()) for t, value in targets.log_z.items()]
    if targets.state_NH is not None:
        checked.append(("state", targets.state_NH.isfinite().all(dim=1)))
    return checked


def _of_rows(micro: MicroBatch, rows_N: Tensor) -> tuple[int, ...]:
    return _sequences(micro, micro.sequence_N[rows_N.to(micro.sequence_N.device)])


def _sequences(micro: MicroBatch, sequence_X: Tensor) -> tuple[int, ...]:
    """Cache numbers of sequences of a batch, without repeats."""
    return tuple(micro.numbers[b] for b in sorted(set(sequence_X.tolist())))


def _numbers(batch: StepBatch) -> tuple[int, ...]:
    return tuple(number for micro in batch.batches for number in micro.numbers)
