"""`StepLog`: every step and evaluation in metrics.jsonl, in trackers and on screen.

In: step results, guard verdicts, evaluations. Out: metrics lines, progress, and rows of the first steps.
"""

import math
from typing import Any, final

from kdpipe.pipeline.losses.terms import ActiveTerms, TermName
from kdpipe.pipeline.models.memory import peak_device_bytes, peak_process_bytes
from kdpipe.pipeline.training.guard import Guard, GuardVerdict
from kdpipe.pipeline.training.memorization import most_epochs
from kdpipe.pipeline.training.metrics import Metrics
from kdpipe.pipeline.training.optimizers import learning_rates
from kdpipe.pipeline.training.run import Run
from kdpipe.pipeline.training.step import StepResult, TermMetrics
from kdpipe.pipeline.training.trackers import Trackers
from kdpipe.pipeline.training.train_state import TrainState
from kdpipe.pipeline.training.training_table import TrainingTable
from kdpipe.schemas.checkpoint import LoopState, MetricsState
from kdpipe.schemas.progress import Progress, TaskUpdate
from kdpipe.schemas.train_report import Evaluation

Line = dict[str, Any]
FIRST_STEPS = 5


@final
class StepLog:
    """Writes one line per step and per evaluation."""

    def __init__(
        self, run: Run, train_state: TrainState, metrics: Metrics, trackers: Trackers, progress: Progress
    ) -> None:
        self._run, self._train_state, self._progress = run, train_state, progress
        self._metrics, self._trackers = metrics, trackers
        self._positions, self._waited, self._seconds, self._steps = 0, 0.0, 0.0, 0
        self._validated: float | None = None
        self._table, self._has_warned = TrainingTable(run, progress), False
        self._most_epochs = most_epochs(run.curriculum, run.cache.manifest.targets, run.cache.n_positions)

    @property
    def has_steps(self) -> bool:
        """Whether this session has made a step."""
        return self._steps > 0

    @property
    def positions_per_second(self) -> float | None:
        """Over the steps of this session."""
        return self._positions / self._seconds if self._seconds else None

    @property
    def waiting_share(self) -> float | None:
        """Share of the time of the steps of this session spent waiting for the cache."""
        return self._waited / self._seconds if self._seconds else None

    @property
    def seconds_per_step(self) -> float | None:
        """Mean over the steps of this session."""
        return self._seconds / self._steps if self._steps else None

    def sync(self) -> MetricsState:
        """The extent of metrics.jsonl once it is on disk, for a checkpoint."""
        return self._metrics.sync()

    def rewind(self, step: int) -> None:
        """Mark later lines as undone, and restart trackers at a step."""
        self._metrics.undo(step)
        self._trackers.rewind(step)

    def write_step(
        self,
        state: LoopState,
        result: StepResult,
        terms: ActiveTerms,
        verdict: GuardVerdict,
        guard: Guard,
        spent: tuple[float, float],
    ) -> TaskUpdate:
        """Log a step, accepted or not; `spent` are its seconds, and those of them spent waiting for the cache."""
        seconds, waited = spent
        self._positions += result.positions
        self._seconds, self._waited, self._steps = self._seconds + seconds, self._waited + waited, self._steps + 1
        rates, scaler = learning_rates(self._train_state.optimizer), self._train_state.scaler
        self._write(
            {
                **_extent(state),
                self._run.loss_name(terms): result.loss,
                "terms": {self._name(name, terms): _parts(term, result.loss) for name, term in result.terms.items()},
                "temperature": terms.temperature,
                "rates": rates,
                "gradient_norm": result.gradient_norm,
                **_guard_values(verdict, guard),
                "scale": None if scaler is None else scaler.get_scale(),
                "positions_per_second": result.positions / seconds if seconds else None,
                "waiting_share": waited / seconds if seconds else None,
                "memory_bytes": peak_process_bytes(),
                "device_bytes": peak_device_bytes(self._train_state.device),
                **({"logged": result.logged} if result.logged else {}),
            }
        )
        if state.step <= FIRST_STEPS:
            self._table.add_step(state.step, result, terms)
        facts: dict[str, float] = {}
        if math.isfinite(result.loss):
            facts[self._run.loss_name(terms)] = result.loss
        if self._validated is not None:
            facts["val"] = self._validated
        if state.best is not None:
            facts["best"] = state.best.value
        facts |= {"lr": next(iter(rates.values())), "positions/s": self.positions_per_second or 0.0}
        facts["cache"] = self.waiting_share or 0.0
        if guard.state.skipped:
            facts["skipped"] = guard.state.skipped
        seconds_left = self._seconds / self._steps * (self._run.plan.n_steps - state.step)
        return TaskUpdate(done=state.step, seconds_left=seconds_left, facts=facts)

    def write_verdict(self, state: LoopState, verdict: GuardVerdict, guard: Guard) -> None:
        """Log a verdict on steps that were logged as accepted."""
        self._write({**_extent(state), **_guard_values(verdict, guard)})

    def write_evaluation(self, state: LoopState, evaluation: Evaluation, train_loss: float | None) -> None:
        """Log an evaluation and its gap to the training loss of the step before it."""
        gap = {"train_gap": _train_gap(evaluation, train_loss), "train_loss_is_estimate": self._memorizes(state)}
        self._write({"step": state.step, "evaluation": {**evaluation.summary, "terms": dict(evaluation.terms), **gap}})
        self.show_evaluation(state, evaluation, train_loss)

    def show_evaluation(self, state: LoopState, evaluation: Evaluation, train_loss: float | None) -> None:
        """Show an evaluation on screen only."""
        value = getattr(evaluation, self._run.metric)
        is_best = self._run.improves(value, state.best) or (state.best is not None and state.best.step == state.step)
        self._validated = value
        if self._memorizes(state) and not self._has_warned:
            self._has_warned = True
            epochs = f"{state.place / self._run.plan.n_sequences:.2g}"
            self._progress.message(f"each sample was used {epochs} times: gaps to the training loss are estimates (~)")
        self._table.add_evaluation(
            state.step,
            evaluation,
            gap=_train_gap(evaluation, train_loss),
            is_estimate=self._memorizes(state),
            is_best=is_best,
        )

    def _write(self, line: Line) -> None:
        self._metrics.write(line)
        self._trackers.write(line)

    def _memorizes(self, state: LoopState) -> bool:
        """Whether the stored samples were used often enough to be memorized."""
        return self._most_epochs is not None and state.place > self._most_epochs * self._run.plan.n_sequences

    def _name(self, name: TermName, terms: ActiveTerms) -> str:
        return self._run.term_name(name, terms.temperature)


def _extent(state: LoopState) -> Line:
    return {name: getattr(state, name) for name in ("step", "place", "positions", "tokens")}


def _guard_values(verdict: GuardVerdict, guard: Guard) -> Line:
    return {
        "verdict": verdict.kind,
        "why": verdict.why,
        "skipped": guard.state.skipped,
        "consecutive_skips": guard.state.in_a_row,
        "rollbacks": guard.state.rollbacks,
        "success_rate": guard.success_rate,
    }


def _train_gap(evaluation: Evaluation, train_loss: float | None) -> float | None:
    return None if evaluation.loss is None or train_loss is None else evaluation.loss - train_loss


def _parts(term: TermMetrics, loss: float) -> Line:
    share = term.weighted / loss if loss else None
    return {"raw": term.raw, "weight": term.weight, "weighted": term.weighted, "share": share, "count": term.count}
