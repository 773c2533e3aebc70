"""`Evaluator`: metrics of a student on a split of a cache: labels, teacher, calibration, the training objective.

In: a cache, a student, optionally its training objective. Out: an `Evaluation`. KL is forward and at T=1: exact from
states, unbiased from draws at T=1, else a lower bound by one bin.
"""

from dataclasses import dataclass
from itertools import chain
from typing import final

import numpy as np
import torch
from torch import Tensor

from kdpipe.cache.reader import Cache
from kdpipe.pipeline.batches.batch_order import FixedOrder
from kdpipe.pipeline.batches.collate import BatchContents
from kdpipe.pipeline.batches.micro_batch import MicroBatch, Targets
from kdpipe.pipeline.batches.prefetch import StepLoader
from kdpipe.pipeline.evaluation.tally import EvalTally, EvaluatedRows, evaluated_sequences
from kdpipe.pipeline.losses.dense_chunk import TeacherHead
from kdpipe.pipeline.losses.exactness import estimate
from kdpipe.pipeline.losses.head_chunks import HeadLosses
from kdpipe.pipeline.losses.objective import Objective, StudentOutputs
from kdpipe.pipeline.losses.terms import ActiveTerms, LogitTerm, LossOptions, TermName, factor
from kdpipe.pipeline.models.precision import Precision
from kdpipe.pipeline.students.student import Student
from kdpipe.schemas.errors import ConfigError, KdpipeError
from kdpipe.schemas.progress import Progress, SilentProgress, Task, TaskUpdate, running
from kdpipe.schemas.train_report import Evaluation

KL = LogitTerm(name="forward_kl", coefficient=1.0)
# Rows per product of teacher logits.
STATE_ROWS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingObjective:
    """The objective of a step, evaluated with the other metrics."""

    objective: Objective
    terms: ActiveTerms


@final
class Evaluator:
    """Evaluates on the same sequences each time: all of a split, or `limit` of them spread over it."""

    def __init__(
        self,
        cache: Cache,
        teacher: TeacherHead | None,
        *,
        batch_size: int,
        limit: int | None = None,
        wants: BatchContents | None = None,
        threads: int = 1,
    ) -> None:
        if cache.split_name is None:
            raise ConfigError("an evaluation needs one split", hint='open the cache with split="validation" or "train"')
        if not len(cache):
            raise ConfigError(f"{cache.url} has no sequences in {cache.split_name} to evaluate on")
        spec = cache.manifest.targets
        self.cache, self.estimate, self._split = cache, estimate(spec), cache.split_name
        self._teacher, self._batch_size, self._threads = teacher, batch_size, threads
        self._options = LossOptions(tail_weight=1.0 if spec.has_draws or spec.keep.complete else 0.0)
        extra = wants or BatchContents()
        self._wants = BatchContents(
            targets=spec.keep.has_teacher,
            statistics=spec.keep.has_teacher,
            hidden=extra.hidden,
            pooled=extra.pooled,
        )
        self._order = FixedOrder(evaluated_sequences(cache, limit))

    @property
    def n_sequences(self) -> int:
        return len(self._order)

    def measure(
        self,
        student: Student,
        precision: Precision,
        trained: TrainingObjective | None = None,
        progress: Progress | None = None,
    ) -> Evaluation:
        """Evaluate a student, whose training mode is restored."""
        progress = progress or SilentProgress()
        tally, own = EvalTally(), _ObjectiveSums(trained)
        head = HeadLosses(student.head, self._options, self._teacher)
        was_training = student.model.training
        student.model.eval()
        loader = StepLoader(self.cache, self._wants, batch_size=self._batch_size, threads=self._threads)
        try:
            task = Task(name="evaluate", unit="sequences", total=len(self._order))
            with torch.no_grad(), loader, running(progress, task):
                for begin in range(0, len(self._order), self._batch_size):
                    end = min(begin + self._batch_size, len(self._order))
                    for batch in loader.take(begin, end, self._order).batches:
                        self._add(student, precision, head, batch.to(student.device), tally, own)
                    progress.update(TaskUpdate(done=end))
        finally:
            student.model.train(was_training)
        if not tally.n_positions:
            raise ConfigError(f"{self.cache.url} has no positions to evaluate in the selected sequences")
        return tally.evaluation(
            self.estimate,
            cache_id=self.cache.cache_id,
            split=self._split,
            loss=own.loss,
            terms=own.raw,
        )

    def _add(
        self,
        student: Student,
        precision: Precision,
        head: HeadLosses,
        batch: MicroBatch,
        tally: EvalTally,
        own: "_ObjectiveSums",
    ) -> None:
        with precision.autocast(student.device):
            states = student.states(batch, own.layers)
            own.add(states, batch)
            terms = (KL,) if self.estimate is not None else ()
            result = head(states.rows_NH, batch.labels_N, batch.targets, terms, sequence_N=batch.sequence_N, watch=True)
        statistics = result.statistics
        assert statistics is not None
        rows = EvaluatedRows(
            document_N=document_numbers(batch),
            cross_entropy_N=_doubles(statistics.cross_entropy_N),
            confidence_N=_doubles(statistics.confidence_N),
            hit_N=(statistics.argmax_N == batch.labels_N).cpu().numpy(),
            kl_N=_doubles(result.rows["forward_kl"]) if terms else None,
            agreed_N=self._agreed(statistics.argmax_N, batch.targets),
            teacher_entropy_N=None if batch.teacher_entropy_N is None else _doubles(batch.teacher_entropy_N),
        )
        _check_finite(rows)
        tally.add(rows)

    def _agreed(self, argmax_N: Tensor, targets: Targets | None) -> np.ndarray[tuple[int], np.dtype[np.bool_]] | None:
        """Where the student's most probable id is the teacher's, which is the first exact one."""
        if targets is None:
            return None
        top_N = targets.ids_NK[:, 0]
        if targets.state_NH is not None:
            assert self._teacher is not None
            teacher = self._teacher.to(targets.state_NH.device)
            pieces = torch.split(targets.state_NH, STATE_ROWS)
            tops = [teacher.logits(states_CH, torch.float32).argmax(dim=1) for states_CH in pieces]
            top_N = torch.cat(tops) if tops else argmax_N
        agreed: np.ndarray[tuple[int], np.dtype[np.bool_]] = (argmax_N == top_N).cpu().numpy()
        return agreed


class _ObjectiveSums:
    """Sums and counts of the training objective's terms over the evaluated batches."""

    def __init__(self, trained: TrainingObjective | None) -> None:
        self._trained = trained
        self._sums: dict[TermName, float] = {}
        self._counts: dict[TermName, int] = {}
        self.layers = () if trained is None else trained.objective.layers

    def add(self, states: StudentOutputs, batch: MicroBatch) -> None:
        if self._trained is None:
            return
        terms, objective = self._trained.terms, self._trained.objective
        counts = objective.counts((batch,), terms)
        for name, value in objective(states, batch, terms, counts).sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)
        for name, count in counts.items():
            self._counts[name] = self._counts.get(name, 0) + count

    @property
    def raw(self) -> dict[str, float]:
        """The mean of each term over its rows or groups."""
        return {name: value / max(1, self._counts[name]) for name, value in self._sums.items()}

    @property
    def loss(self) -> float | None:
        if self._trained is None:
            return None
        terms = self._trained.terms
        return sum(
            terms.weights[name] * factor(name, terms.temperature) * value / self._counts[name]
            for name, value in self._sums.items()
            if self._counts[name]
        )


def document_numbers(batch: MicroBatch) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The number within the split of each row's document."""
    starts_B = np.cumsum([0, *(len(numbers) for numbers in batch.documents[:-1])])
    document_N = batch.document_BT.flatten()[batch.places_N].cpu().numpy()
    numbers_N: np.ndarray[tuple[int], np.dtype[np.int64]] = np.array(list(chain(*batch.documents)))[
        starts_B[batch.sequence_N.cpu().numpy()] + document_N
    ]
    return numbers_N


def _doubles(values_N: Tensor) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    doubles: np.ndarray[tuple[int], np.dtype[np.float64]] = values_N.detach().cpu().numpy().astype(np.float64)
    return doubles


def _check_finite(rows: EvaluatedRows) -> None:
    for what, values in (("cross-entropy", rows.cross_entropy_N), ("KL to the teacher", rows.kl_N)):
        if values is not None and not np.isfinite(values).all():
            place = int((~np.isfinite(values)).argmax())
            raise KdpipeError(
                f"the student's {what} is {values[place]} in document {rows.document_N[place]:,}",
                hint="train it again at a lower --lr, or with --guard ultra-stable",
            )
