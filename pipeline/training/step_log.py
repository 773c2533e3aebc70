"""The book of a run: every step and evaluation in metrics.jsonl, in trackers, and as news for whoever watches.

In: what `step.py` took, what the guard said, the time it took. Out: lines, `StepProgress`, and what the first steps
show.
"""

import math
from collections.abc import Callable
from typing import Any, final

from kdpipe.pipeline.losses.terms import ActiveTerms, TermName, factor
from kdpipe.pipeline.models.memory import peak_device_bytes, peak_process_bytes
from kdpipe.pipeline.training.guard import Guard, GuardVerdict
from kdpipe.pipeline.training.memorization import most_epochs
from kdpipe.pipeline.training.optimizers import rates
from kdpipe.pipeline.training.prepare import PreparedRun
from kdpipe.pipeline.training.step import StepResult, TermMetrics
from kdpipe.pipeline.watch import StepProgress, TrainWatch
from kdpipe.schemas.checkpoint import LoopState
from kdpipe.schemas.train_report import Evaluation, loss_name

Line = dict[str, Any]
FIRST_STEPS = 5


@final
class StepLog:
    """Writes to `write`, one line a step; terms that are bounds are named so."""

    def __init__(self, prepared: PreparedRun, watch: TrainWatch, write: Callable[[Line], None]) -> None:
        self._run, self._watch, self._write = prepared, watch, write
        self._positions, self._waited, self._seconds, self._steps = 0, 0.0, 0.0, 0
        cache = prepared.prospect.cache
        self._most_epochs = most_epochs(prepared.curriculum, cache.manifest.targets, cache.n_positions)

    @property
    def has_steps(self) -> bool:
        """Whether this call has made a step."""
        return self._steps > 0

    @property
    def positions_per_second(self) -> float | None:
        """Over the steps of this call."""
        return self._positions / self._seconds if self._seconds else None

    @property
    def waiting_share(self) -> float | None:
        """Of the time of the steps of this call, what went by waiting for the cache."""
        return self._waited / self._seconds if self._seconds else None

    @property
    def seconds_per_step(self) -> float | None:
        """The mean of the steps of this call."""
        return self._seconds / self._steps if self._steps else None

    def write_step(
        self,
        state: LoopState,
        took: StepResult,
        terms: ActiveTerms,
        verdict: GuardVerdict,
        guard: Guard,
        spent: tuple[float, float],
    ) -> StepProgress:
        """Put down a step, done or skipped; `spent` is the seconds it took and those of them waited for the cache."""
        seconds, waited = spent
        self._positions += took.positions
        self._seconds, self._waited, self._steps = self._seconds + seconds, self._waited + waited, self._steps + 1
        rate = rates(self._run.train_state.optimizer)
        loss = took.loss if math.isfinite(took.loss) else None
        self._write(
            {
                **_extent(state),
                loss_name(self._run.loss_is_shifted(terms)): took.loss,
                "terms": {self._named(name, terms): _parts(term, took.loss) for name, term in took.terms.items()},
                "temperature": terms.temperature,
                "rates": rate,
                "gradient_norm": took.gradient_norm,
                **_judged(verdict, guard),
                "scale": None if self._run.train_state.scaler is None else self._run.train_state.scaler.get_scale(),
                "positions_per_second": took.positions / seconds if seconds else None,
                "waiting_share": waited / seconds if seconds else None,
                "memory_bytes": peak_process_bytes(),
                "device_bytes": peak_device_bytes(self._run.train_state.device),
                **({"logged": took.logged} if took.logged else {}),
            }
        )
        if state.step <= FIRST_STEPS:
            self._watch.say(self._shown(state, took, terms) if state.step == 1 else self._summary(state, took, terms))
        each = self._seconds / self._steps
        return StepProgress(
            step=state.step,
            loss=loss,
            loss_name=loss_name(self._run.loss_is_shifted(terms)),
            rate=next(iter(rate.values())),
            positions_per_second=self._positions / self._seconds if self._seconds else 0.0,
            waiting_share=self._waited / self._seconds if self._seconds else 0.0,
            skipped=guard.state.skipped,
            seconds_left=each * (self._run.plan.n_steps - state.step),
        )

    def write_verdict(self, state: LoopState, verdict: GuardVerdict, guard: Guard) -> None:
        """Put down what became of steps that had been put down as done."""
        self._write({**_extent(state), **_judged(verdict, guard)})

    def write_evaluation(self, state: LoopState, found: Evaluation, loss_before: float | None) -> None:
        """Put down an evaluation beside the loss of the step before it: the gap is what was learnt by heart."""
        gap = {"train_gap": _train_gap(found, loss_before), "train_loss_is_estimate": self._memorizes(state)}
        self._write({"step": state.step, "evaluation": {**found.summary, "terms": dict(found.terms), **gap}})
        self.show_evaluation(state, found, loss_before)

    def show_evaluation(self, state: LoopState, found: Evaluation, loss_before: float | None) -> None:
        """Show an evaluation on screen alone."""
        gap = _train_gap(found, loss_before)
        told = [f"CE {found.cross_entropy:.4f}"]
        if found.kl_teacher is not None:
            told.append(f"KL to the teacher {found.kl_teacher:.4f}")
        if found.top1_agreement is not None:
            told.append(f"agreement {found.top1_agreement:.1%}")
        told.append(f"calibration error {found.ece:.1%}")
        if found.loss is not None:
            epochs = f"{state.place / self._run.plan.n_sequences:.2g}"
            estimate = f", an estimate by draws that are read {epochs} times" if self._memorizes(state) else ""
            beside = "" if gap is None else f" ({gap:+.4f} to training{estimate})"
            told.insert(0, f"{found.loss_name} {found.loss:.4f}{beside}")
        self._watch.say(f"step {state.step:,}, validation: {', '.join(told)}")

    def _memorizes(self, state: LoopState) -> bool:
        """Whether the loss of a step is by draws that were read often enough to be memorized."""
        return self._most_epochs is not None and state.place > self._most_epochs * self._run.plan.n_sequences

    def _named(self, name: TermName, terms: ActiveTerms) -> str:
        return self._run.name_of(name, terms.temperature)

    def _summary(self, state: LoopState, took: StepResult, terms: ActiveTerms) -> str:
        """A step in one line, each term by its mean."""
        told = [f"{loss_name(self._run.loss_is_shifted(terms))} {took.loss:.4f}"]
        if len(took.terms) > 1:
            told += [f"{self._named(name, terms)} {term.raw:.4f}" for name, term in took.terms.items()]
        told.append(f"gradient norm {took.gradient_norm:.4g}")
        return f"step {state.step:,}: {', '.join(told)}"

    def _shown(self, state: LoopState, took: StepResult, terms: ActiveTerms) -> str:
        """A step with all of its terms below each other: raw x weight (x T² or T) = what it adds."""
        facts = [
            (self._named(name, terms), _product(name, term, took.loss, terms)) for name, term in took.terms.items()
        ]
        facts.append(("batches", took.shapes))
        width = max(len(name) for name, _ in facts)
        name = loss_name(self._run.loss_is_shifted(terms))
        norm = f"gradient norm {took.gradient_norm:.4g}"
        head = f"step {state.step:,}: {name} {took.loss:.4f}, {norm}, {took.tokens:,} tokens"
        return "\n".join([head, *(f"  {name:<{width}}  {told}" for name, told in facts)])


def _extent(state: LoopState) -> Line:
    return {name: getattr(state, name) for name in ("step", "place", "positions", "tokens")}


def _judged(verdict: GuardVerdict, guard: Guard) -> Line:
    return {
        "verdict": verdict.kind,
        "why": verdict.why,
        "skipped": guard.state.skipped,
        "consecutive_skips": guard.state.in_a_row,
        "rollbacks": guard.state.rollbacks,
        "success_rate": guard.success_rate,
    }


def _train_gap(found: Evaluation, loss_before: float | None) -> float | None:
    return None if found.loss is None or loss_before is None else found.loss - loss_before


def _product(name: TermName, term: TermMetrics, loss: float, terms: ActiveTerms) -> str:
    by = factor(name, 1.0 if name == "ce" else terms.temperature)
    product = f"{term.raw:.4f} x {term.weight:.4g}" + (f" x {by:g}" if by != 1 else "")
    share = f" ({term.weighted / loss:.0%})" if loss else ""
    return f"{product} = {term.weighted:.4f}{share} over {term.count:,}"


def _parts(term: TermMetrics, loss: float) -> Line:
    share = term.weighted / loss if loss else None
    return {"raw": term.raw, "weight": term.weight, "weighted": term.weighted, "share": share, "count": term.count}
