"""The training loop: steps, evaluations, checkpoints, rollbacks and a clean stop.

In: a `Session` and the state to start from. Out: the state at the end. No random number is drawn here: a step depends
on its place in the data order alone, so that a resumed run is bit-identical to an uninterrupted one.
"""

import math
import time
from typing import assert_never, final

from kdpipe.pipeline.training.diagnosis import nonfinite_parameters
from kdpipe.pipeline.training.guard import Guard, GuardVerdict, NotFiniteFinding
from kdpipe.pipeline.training.interruptions import explain_out_of_memory
from kdpipe.pipeline.training.optimizers import set_learning_rate
from kdpipe.pipeline.training.schedules import lr_factor
from kdpipe.pipeline.training.session import Session
from kdpipe.pipeline.training.step import StepResult, apply, drop, forward_backward
from kdpipe.schemas.checkpoint import LoopState
from kdpipe.schemas.errors import Interrupted


@final
class Loop:
    """A run in progress; `state` is where it is, `last` the newest step."""

    def __init__(self, session: Session, state: LoopState) -> None:
        self._session, self._run, self._train_state = session, session.run, session.train_state
        self.state = state
        self.guard = Guard(session.run.guard, state.guard)
        self._started = time.perf_counter() - state.seconds
        self.began_at = state.step
        self.last: StepResult | None = None

    def train_until(self, n_steps: int) -> None:
        """Train until `n_steps` steps are done; a stop request ends it with a checkpoint and `Interrupted`."""
        checkpoints, stop, settings = self._session.checkpoints, self._session.stop, self._run.settings
        while self.state.step < n_steps:
            self._enter_phase()
            with explain_out_of_memory(settings, f"at step {self.state.step + 1:,}"):
                accepted = self._one_step()
            done = self.state.step
            scheduled = accepted and checkpoints.should_evaluate_or_save(done)
            if (scheduled or stop.requested) and self._is_finite():
                with explain_out_of_memory(settings, f"evaluating and saving after step {done:,}"):
                    self._evaluate_and_save(scheduled)
            if stop.requested:
                raise Interrupted(
                    f"interrupted at step {self.state.step:,} of {self._run.plan.n_steps:,}",
                    hint="run the same command again to resume",
                )

    def _evaluate_and_save(self, scheduled: bool) -> None:
        """Evaluate and save as scheduled; a new best student is saved in any case."""
        checkpoints, done, best = self._session.checkpoints, self.state.step, self.state.best
        if scheduled and checkpoints.should_evaluate(done):
            self.state = checkpoints.evaluate(self.state, self.last)
            self._session.samples.write(done)
        if checkpoints.should_save(done) or self.state.best != best:
            self.state = self.state.model_copy(update={"snapshot": done})
            checkpoints.save(self.state)
        elif self._session.stop.requested or checkpoints.decay_begins(done):
            checkpoints.save(self.state)

    def _is_finite(self) -> bool:
        """Whether all parameters are finite: a rollback may load what is saved now."""
        names = nonfinite_parameters(self._train_state.model)
        if names:
            step = self.state.step
            verdict = self.guard.judge((NotFiniteFinding(where="parameters", what=names),), math.nan)
            # The steps since are repeated with the data that follow, also the last step of a run.
            self._roll_back()
            self._session.log.write_verdict(self.state, verdict, self.guard)
            self._report(verdict, step)
        return not names

    def _roll_back(self) -> None:
        """Return to the last good student; later steps no longer count, and the data continue."""
        good = self._session.checkpoints.roll_back(self.state.snapshot)
        self._session.samples.rewind(good.step)
        self.guard.roll_back(good.guard)
        counts = good.model_dump(include={"step", "positions", "tokens", "phase", "order_began"})
        update = {**counts, "snapshot": good.step, "best": good.best, "guard": self.guard.state}
        self.state = self.state.model_copy(update=update)

    def _enter_phase(self) -> None:
        """Start a new data order where a phase brings one."""
        curriculum, state = self._run.curriculum, self.state
        phase = curriculum.phase_at(state.step)
        if phase == state.phase:
            return
        self.guard.enter(phase)
        began = state.place if curriculum.order_at(state.step).since == state.step else state.order_began
        self.state = state.model_copy(update={"phase": phase, "order_began": began})

    def _one_step(self) -> bool:
        run, train_state, loader, state = self._run, self._train_state, self._session.loader, self.state
        started, waited = time.perf_counter(), loader.waited_seconds
        terms = self.guard.active_terms(run.curriculum.at(state.step))
        begin, size = state.place - state.order_began, run.plan.size_of(state.step)
        batch = loader.take(begin, begin + size, train_state.orders[run.curriculum.order_at(state.step).order])
        factor = lr_factor(run.settings.schedule, run.plan, state.step)
        set_learning_rate(train_state.optimizer, self.guard.state.rate_factor * factor)
        result = forward_backward(train_state, batch, terms)
        scale = None if train_state.scaler is None else train_state.scaler.get_scale()
        verdict = self.guard.judge(result.findings, result.gradient_norm, scale)
        accepted = verdict.kind == "accept"
        if accepted:
            apply(train_state, result, run.guard.clip)
        else:
            drop(train_state)
        self.state = state.model_copy(
            update={
                "step": state.step + accepted,
                "place": state.place + size,
                "positions": state.positions + result.positions * accepted,
                "tokens": state.tokens + result.tokens * accepted,
                "seconds": time.perf_counter() - self._started,
                "guard": self.guard.state,
            }
        )
        self.last = result
        seconds = (time.perf_counter() - started, loader.waited_seconds - waited)
        if verdict.kind in ("rollback", "stop"):
            self._roll_back()
        update = self._session.log.write_step(self.state, result, terms, verdict, self.guard, seconds)
        self._session.progress.update(update)
        self._report(verdict, state.step + 1)
        return accepted

    def _report(self, verdict: GuardVerdict, step: int) -> None:
        """Report a step that does not count; raise if the guard stops the run."""
        progress, state = self._session.progress, self.state
        match verdict.kind:
            case "accept":
                pass
            case "overflow":
                progress.message(f"step {step:,} is skipped: {verdict.why}")
            case "skip":
                progress.warning(f"step {step:,} is skipped: {verdict.why}")
            case "rollback":
                progress.warning(
                    f"step {step:,}: {verdict.why}; rolled back to step {state.step:,}, with fresh optimizer moments "
                    f"and {state.guard.rate_factor:g} of the learning rate"
                )
            case "stop":
                self._session.checkpoints.save(state)
                raise self.guard.failure(step - 1, verdict)
            case _:
                assert_never(verdict.kind)
