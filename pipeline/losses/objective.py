"""`Objective`: everything that is minimized, for one micro-batch of an optimizer step.

In: a `MicroBatch`, the active terms, their counts over the whole step. Out: a scalar to call backward on, and the raw
sum of every term.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from kdpipe.pipeline.batches.micro_batch import MicroBatch
from kdpipe.pipeline.losses.head_chunks import HeadLosses, RowStatistics
from kdpipe.pipeline.losses.hidden.hidden_objective import HiddenObjective
from kdpipe.pipeline.losses.selection import chosen, n_chosen
from kdpipe.pipeline.losses.terms import HIDDEN_NAMES, LOGIT_NAMES, ActiveTerms, LogitTerm, TermName, factor
from kdpipe.schemas.losses import LOGIT_LOSSES
from kdpipe.schemas.train_settings import PositionSelection

STUDENT_STATISTICS = ("student_entropy", "student_cross_entropy")


class StudentOutputs(Protocol):
    """A student's forward pass over a batch: last states of the rows, and the requested layers."""

    @property
    def rows_NH(self) -> Tensor:  # noqa: N802  # a shape suffix
        """States after the final norm, at the batch's places."""
        ...

    @property
    def layers(self) -> Mapping[int, Tensor]:
        """States by layer; 0 is the embeddings."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveResult:
    """`total` is differentiable; `sums` are raw, over each term's rows; `logged` are other numbers for the logs."""

    total: Tensor
    sums: dict[TermName, Tensor]
    statistics: RowStatistics | None = None
    logged: Mapping[str, Tensor] = field(default_factory=dict)


class Objective:
    """All terms of a run, computed from a student's states."""

    def __init__(self, head: HeadLosses, hidden: HiddenObjective | None, select: Sequence[PositionSelection]) -> None:
        self.head, self.hidden, self._select = head, hidden, tuple(select)

    @property
    def layers(self) -> tuple[int, ...]:
        """The student's layers that hidden-state losses need."""
        return self.hidden.layers if self.hidden is not None else ()

    def counts(self, batches: Sequence[MicroBatch], terms: ActiveTerms) -> dict[TermName, int]:
        """How many rows or groups each active term has in some batches."""
        counts: dict[TermName, int] = {}
        for name in terms.weights:
            if name in LOGIT_NAMES:
                selection = self._selection(name)
                counts[name] = sum(len(b.labels_N) if selection is None else n_chosen(selection, b) for b in batches)
        if self.hidden is not None:
            for batch in batches:
                for hidden, count in self.hidden.counts(batch).items():
                    if hidden in terms.weights:
                        counts[hidden] = counts.get(hidden, 0) + count
        return counts

    def __call__(
        self,
        states: StudentOutputs,
        batch: MicroBatch,
        terms: ActiveTerms,
        counts: Mapping[TermName, int],
        *,
        watch: bool = False,
    ) -> ObjectiveResult:
        """The batch's share of the step's loss."""
        logit = self._logit_terms(states, batch, terms, counts)
        result = self.head(
            states.rows_NH, batch.labels_N, batch.targets, logit, sequence_N=batch.sequence_N, watch=watch
        )
        total = result.total
        sums: dict[TermName, Tensor] = dict(result.sums.items())
        logged: Mapping[str, Tensor] = {}
        coefficients = {
            name: terms.weights[name] / counts[name]
            for name in HIDDEN_NAMES
            if terms.weights.get(name) and counts.get(name)
        }
        if self.hidden is not None and coefficients:
            hidden = self.hidden(states.layers, batch, coefficients)
            total, logged = total + hidden.total, hidden.logged
            sums.update(hidden.sums)
        return ObjectiveResult(total=total, sums=sums, statistics=result.statistics, logged=logged)

    def _logit_terms(
        self, states: StudentOutputs, batch: MicroBatch, terms: ActiveTerms, counts: Mapping[TermName, int]
    ) -> list[LogitTerm]:
        statistics = None
        if any(selection.by in STUDENT_STATISTICS for selection in self._select):
            with torch.no_grad():
                statistics = self.head.statistics(states.rows_NH, batch.labels_N)
        logit_terms = []
        for name in LOGIT_NAMES:
            if not terms.weights.get(name) or not counts.get(name):
                continue
            temperature = terms.temperature if LOGIT_LOSSES[name].compares != "label" else 1.0
            selection = self._selection(name)
            logit_terms.append(
                LogitTerm(
                    name=name,
                    coefficient=terms.weights[name] * factor(name, temperature) / counts[name],
                    temperature=temperature,
                    chosen_N=None if selection is None else chosen(selection, batch, statistics),
                )
            )
        return logit_terms

    def _selection(self, name: TermName) -> PositionSelection | None:
        kind = "kd" if LOGIT_LOSSES[name].compares != "label" else "ce"
        return next((selection for selection in self._select if selection.term == kind), None)
