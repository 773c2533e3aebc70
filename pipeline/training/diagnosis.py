"""Diagnosis: a step whose loss or gradient is not finite is looked through until it is known where that began.

In: a step's batches, and the learner as it is. Out: findings by place: targets, the student's logits, a term, the
gradient or the parameters, with the sequences concerned. Slow on purpose: it runs only then.
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
    """Find the first place on the way from parameters and targets to the gradient that is not finite."""
    if odd := odd_names(train_state.model):
        return (NotFiniteFinding(where="parameters", what=odd),)
    found = [finding for micro in batch.batches for finding in _in_batch(train_state, micro, terms, counts)]
    if found:
        return tuple(found[:SHOWN])
    odd = odd_names(train_state.model, gradients=True)
    return (NotFiniteFinding(where="gradient", what=odd or "it overflowed", sequences=_numbers(batch)),)


def odd_names(model: nn.Module, *, gradients: bool = False) -> str:
    """Parameters that are not finite, or whose gradient is not: the first few names."""
    values = ((name, p.grad if gradients else p) for name, p in model.named_parameters())
    odd = [name for name, value in values if value is not None and not bool(value.isfinite().all())]
    more = f" and {len(odd) - SHOWN} more" if len(odd) > SHOWN else ""
    return ", ".join(odd[:SHOWN]) + more


def _in_batch(
    train_state: TrainState, micro: MicroBatch, terms: ActiveTerms, counts: Mapping[TermName, int]
) -> Iterator[NotFiniteFinding]:
    """The first thing in a micro-batch that is not finite: what the cache says, the student's states, or a term."""
    odd = odd_targets(micro)
    if odd is not None:
        yield NotFiniteFinding(where="targets", what=odd[0], sequences=odd[1])
        return
    there = micro.to(train_state.device)
    with torch.no_grad(), train_state.precision.autocast(train_state.device):
        states = train_state.student.states(there, train_state.objective.layers)
        rows = ~states.rows_NH.isfinite().all(dim=1)
        if bool(rows.any()):
            yield NotFiniteFinding(
                where="logits", what="the student's last state", sequences=_of_rows(micro, rows.cpu())
            )
            return
        told = train_state.objective.head.statistics(states.rows_NH, there.labels_N)
        rows = ~told.cross_entropy_N.isfinite()
        if bool(rows.any()):
            yield NotFiniteFinding(where="logits", what="the student's logits", sequences=_of_rows(micro, rows.cpu()))
            return
        sums = train_state.objective(states, there, terms, counts).sums
    for name, value in sums.items():
        if not bool(value.isfinite()):
            yield NotFiniteFinding(where=name, what="its value", sequences=micro.numbers)


def odd_targets(micro: MicroBatch) -> tuple[str, tuple[int, ...]] | None:
    """What of the cache is not what it must be, and in which sequences."""
    checked = [] if micro.targets is None else _checked(micro.targets)
    checked += [(f"hidden state of layer {n}", value.isfinite().all(dim=1)) for n, value in micro.hidden.items()]
    for name, good_N in checked:
        if not bool(good_N.all()):
            return name, _of_rows(micro, ~good_N)
    for layer, value in micro.pooled.items():
        good_D = value.isfinite().all(dim=1)
        if micro.document_D2 is not None and not bool(good_D.all()):
            return f"pooled state of layer {layer}", _named(micro, micro.document_D2[~good_D, 0])
    return None


def _checked(targets: Targets) -> list[tuple[str, Tensor]]:
    """What the teacher said, and in which rows it is as it must be; a log of 0 may be -inf, and nothing else."""
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
    return _named(micro, micro.sequence_N[rows_N.to(micro.sequence_N.device)])


def _named(micro: MicroBatch, sequence_X: Tensor) -> tuple[int, ...]:
    """The numbers in the cache of some sequences of a batch, each once."""
    return tuple(micro.numbers[b] for b in sorted(set(sequence_X.tolist())))


def _numbers(batch: StepBatch) -> tuple[int, ...]:
    return tuple(number for micro in batch.batches for number in micro.numbers)
