"""Evaluations of a run: the student as it is against the validation split, by the objective in force and all else.

In: a `PreparedRun` run, its book. Out: an `Evaluation`, which the book has put down.
"""

import time
from typing import final

from kdpipe.cache.reader import Cache
from kdpipe.pipeline.batches.prefetch import loading_threads
from kdpipe.pipeline.evaluation.measure import Evaluator, TrainingObjective
from kdpipe.pipeline.models.devices import usable_cpus
from kdpipe.pipeline.training import cache_requirements as needs
from kdpipe.pipeline.training.prepare import PreparedRun
from kdpipe.pipeline.training.step import StepResult
from kdpipe.pipeline.training.step_log import StepLog
from kdpipe.schemas.checkpoint import LoopState
from kdpipe.schemas.train_report import Evaluation


@final
class Validation:
    """Measures on the same sequences each time; `last` is the newest answer, `seconds` is the time it took."""

    def __init__(self, prepared: PreparedRun, validation: Cache, book: StepLog, limit: int | None) -> None:
        self._run, self._book = prepared, book
        self._evaluator = Evaluator(
            validation,
            needs.teacher_head(validation),
            batch_size=prepared.prospect.portion,
            limit=limit,
            wants=prepared.wants,
            threads=loading_threads(usable_cpus()),
        )
        self.last: Evaluation | None = None
        self.seconds = 0.0

    def __call__(self, state: LoopState, took: StepResult | None) -> Evaluation:
        """Measure after a step, whose loss is set beside that of the validation split, and write it down."""
        found = self._measured(state)
        self._book.write_evaluation(state, found, None if took is None else took.loss)
        return found

    def of_step(self, state: LoopState) -> Evaluation:
        """The evaluation of a step whose line metrics.jsonl has: the newest answer, or measured again."""
        if self.last is not None and self.last.step == state.step:
            return self.last
        found = self._measured(state)
        self._book.show_evaluation(state, found, None)
        return found

    def _measured(self, state: LoopState) -> Evaluation:
        started = time.perf_counter()
        train_state = self._run.train_state
        # What a student is judged by is in force at the last step done, not at the next.
        terms = self._run.curriculum.at(max(0, state.step - 1))
        trained = TrainingObjective(objective=train_state.objective, terms=terms)
        found = self._evaluator.measure(train_state.student, train_state.precision, trained)
        called = {name: self._run.name_of(name, terms.temperature) for name in terms.weights if name in found.terms}
        raw = {called[name]: found.terms[name] for name in called}
        shifted = self._run.loss_is_shifted(terms)
        found = found.model_copy(update={"step": state.step, "terms": raw, "loss_shifted": shifted})
        self.last, self.seconds = found, time.perf_counter() - started
        return found
