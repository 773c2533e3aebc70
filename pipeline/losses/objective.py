"""`Objective`: everything that is minimized, for one micro-batch of an optimizer step.

In: a `MicroBatch`, the terms in force, their counts over the whole step. Out: a scalar to call backward on, and the raw
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
from kdpipe.schemas.train_settings import PositionSelection

OF_THE_STUDENT = ("student_entropy", "student_cross_entropy")


class StudentOutputs(Protocol):
    """What a student made of a batch: last states of the rows, and whole layers that were asked for."""

    @property
    def rows_NH(self) -> Tensor:  # noqa: N802  # a shape suffix
        """Behind the final norm, at the batch's places."""
        ...

    @property
    def layers(self) -> Mapping[int, Tensor]:
        """By number, 0 the embeddings."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveResult:
    """`total` is to be differentiated; `sums` are of raw values over each term's rows, `logged` what else is told."""

    total: Tensor
    sums: dict[TermName, Tensor]
    statistics: RowStatistics | None = None
    logged: Mapping[str, Tensor] = field(default_factory=dict)


class Objective:
    """The terms of a run, over states that the caller has made."""

    def __init__(self, head: HeadLosses, hidden: HiddenObjective | None, select: Sequence[PositionSelection]) -> None:
        self.head, self.hidden, self._select = head, hidden, tuple(select)

    @property
    def layers(self) -> tuple[int, ...]:
        """The student's layers that losses on states need."""
        return self.hidden.layers if self.hidden is not None else ()

    def counts(self, batches: Sequence[MicroBatch], terms: ActiveTerms) -> dict[TermName, int]:
        """How many rows or groups each term in force has in some batches."""
        found: dict[TermName, int] = {}
        for name in terms.weights:
            if name in LOGIT_NAMES:
                one = self._selection(name)
                found[name] = sum(len(b.labels_N) if one is None else n_chosen(one, b) for b in batches)
        if self.hidden is not None:
            for batch in batches:
                for hidden, count in self.hidden.counts(batch).items():
                    if hidden in terms.weights:
                        found[hidden] = found.get(hidden, 0) + count
        return found

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
        wanted = {
            name: terms.weights[name] / counts[name]
            for name in HIDDEN_NAMES
            if terms.weights.get(name) and counts.get(name)
        }
        if self.hidden is not None and wanted:
            met = self.hidden(states.layers, batch, wanted)
            total, logged = total + met.total, met.logged
            sums.update(met.sums)
        return ObjectiveResult(total=total, sums=sums, statistics=result.statistics, logged=logged)

    def _logit_terms(
        self, states: StudentOutputs, batch: MicroBatch, terms: ActiveTerms, counts: Mapping[TermName, int]
    ) -> list[LogitTerm]:
        statistics = None
        if any(one.by in OF_THE_STUDENT for one in self._select):
            with torch.no_grad():
                statistics = self.head.statistics(states.rows_NH, batch.labels_N)
        found = []
        for name in LOGIT_NAMES:
            if not terms.weights.get(name) or not counts.get(name):
                continue
            temperature = 1.0 if name == "ce" else terms.temperature
            one = self._selection(name)
            found.append(
                LogitTerm(
                    name=name,
                    coefficient=terms.weights[name] * factor(name, temperature) / counts[name],
                    temperature=temperature,
                    chosen_N=None if one is None else chosen(one, batch, statistics),
                )
            )
        return found

    def _selection(self, name: TermName) -> PositionSelection | None:
        wanted = "ce" if name == "ce" else "kd"
        return next((one for one in self._select if one.term == wanted), None)
