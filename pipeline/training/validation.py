"""Evaluations during a run: the student on the validation split, with the objective of the current step.

In: a `Run` and its `TrainState`. Out: an `Evaluation`, also written to the log.
"""

import time
from typing import final

from kdpipe.cache.reader import Cache
from kdpipe.pipeline.batches.prefetch import loading_threads
from kdpipe.pipeline.evaluation.measure import Evaluator, TrainingObjective
from kdpipe.pipeline.losses.dense_chunk import teacher_head
from kdpipe.pipeline.models.devices import usable_cpus
from kdpipe.pipeline.training.run import Run
from kdpipe.pipeline.training.step import StepResult
from kdpipe.pipeline.training.step_log import StepLog
from kdpipe.pipeline.training.train_state import TrainState
from kdpipe.schemas.checkpoint import LoopState
from kdpipe.schemas.progress import Progress
from kdpipe.schemas.train_report import Evaluation


@final
class Validation:
    """Evaluates the same sequences each time; `last` is the newest evaluation, `seconds` its duration."""

    def __init__(self, run: Run, train_state: TrainState, validation: Cache, log: StepLog, progress: Progress) -> None:
        self._run, self._train_state, self._log = run, train_state, log
        self._progress = progress
        self._evaluator = Evaluator(
            validation,
            teacher_head(validation),
            batch_size=run.micro_batch_size,
            limit=run.settings.evaluation.limit,
            wants=train_state.wants,
            threads=loading_threads(usable_cpus()),
        )
        self.last: Evaluation | None = None
        self.seconds = 0.0

    def evaluate(self, state: LoopState, result: StepResult | None) -> Evaluation:
        """Evaluate after a step and log it beside the training loss of that step."""
        evaluation = self._measure(state)
        self._log.write_evaluation(state, evaluation, None if result is None else result.loss)
        return evaluation

    def of_step(self, state: LoopState) -> Evaluation:
        """The evaluation of a step that is already in metrics.jsonl: the newest one, or measured again."""
        if self.last is not None and self.last.step == state.step:
            return self.last
        evaluation = self._measure(state)
        self._log.show_evaluation(state, evaluation, None)
        return evaluation

    def _measure(self, state: LoopState) -> Evaluation:
        started = time.perf_counter()
        run, train_state = self._run, self._train_state
        # The terms of the last step done, not of the next.
        terms = run.curriculum.at(max(0, state.step - 1))
        trained = TrainingObjective(objective=train_state.objective, terms=terms)
        evaluation = self._evaluator.measure(train_state.student, train_state.precision, trained, self._progress)
        raw = {
            run.term_name(name, terms.temperature): evaluation.terms[name]
            for name in terms.weights
            if name in evaluation.terms
        }
        shifted = run.loss_is_shifted(terms)
        evaluation = evaluation.model_copy(update={"step": state.step, "terms": raw, "loss_shifted": shifted})
        self.last, self.seconds = evaluation, time.perf_counter() - started
        return evaluation
