"""The loop: step after step until the plan is done, with evaluations, checkpoints, rollbacks and a clean stop.

In: a `PreparedRun` run and where it is. Out: where it is then; every file on the way. Nothing here draws a number: what
a step does follows from its place alone, so that a run gone on with is the run undisturbed.
"""

import math
import time
from dataclasses import dataclass

from kdpipe.pipeline.batches.prefetch import StepLoader
from kdpipe.pipeline.losses.terms import ActiveTerms
from kdpipe.pipeline.training.checkpoint_policy import CheckpointPolicy
from kdpipe.pipeline.training.diagnosis import odd_names
from kdpipe.pipeline.training.guard import Guard, GuardVerdict, NotFiniteFinding
from kdpipe.pipeline.training.optimizers import set_rate
from kdpipe.pipeline.training.out_of_memory import explained
from kdpipe.pipeline.training.prepare import PreparedRun
from kdpipe.pipeline.training.schedules import rate
from kdpipe.pipeline.training.step import StepResult, apply, drop, forward_backward
from kdpipe.pipeline.training.step_log import StepLog
from kdpipe.pipeline.training.stop_signals import StopRequest
from kdpipe.pipeline.watch import TrainWatch
from kdpipe.schemas.checkpoint import LoopState
from kdpipe.schemas.errors import Interrupted


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopContext:
    """What the loop talks to: the loader, checkpoints and evaluations, the log, whoever watches and may stop it."""

    loader: StepLoader
    keeper: CheckpointPolicy
    book: StepLog
    watch: TrainWatch
    stop: StopRequest


class Loop:
    """A run under way; `state` is where it is."""

    def __init__(self, prepared: PreparedRun, state: LoopState, around: LoopContext) -> None:
        self._run, self._around = prepared, around
        self.state = state
        self.guard = Guard(prepared.guard, state.guard)
        self._started = time.perf_counter() - state.seconds
        self.began_at = state.step
        self.last: StepResult | None = None

    def go_on(self, until: int) -> None:
        """Take steps until so many are done; a request to stop ends it with a checkpoint and `Interrupted`."""
        around = self._around
        while self.state.step < until:
            self._enter_phase()
            with explained(self._run.settings, f"at step {self.state.step + 1:,}"):
                accepted = self._one_step()
            done = self.state.step
            due = accepted and around.keeper.anything_is_due(done)
            if (due or around.stop.asked) and self._is_sound():
                with explained(self._run.settings, f"evaluating and saving after step {done:,}"):
                    self._look_and_save(due)
            if around.stop.asked:
                raise Interrupted(
                    f"stopped at step {self.state.step:,} of {self._run.plan.n_steps:,}",
                    hint="run the same command again to go on",
                )

    def _look_and_save(self, due: bool) -> None:
        """Evaluate and save what is due; a student that is the best so far is saved in any case."""
        keeper, done, best = self._around.keeper, self.state.step, self.state.best
        if due and keeper.evaluation_is_due(done):
            self.state = keeper.evaluate(self.state, self.last)
        if keeper.saving_is_due(done) or self.state.best != best:
            self.state = self.state.model_copy(update={"snapshot": done})
            keeper.save(self.state)
        elif self._around.stop.asked or keeper.fall_begins(done):
            keeper.save(self.state)

    def _is_sound(self) -> bool:
        """Whether the step that was taken has left numbers: what is saved must be good to go back to."""
        odd = odd_names(self._run.train_state.model)
        if odd:
            taken = self.state.step
            verdict = self.guard.judge((NotFiniteFinding(where="parameters", what=odd),), math.nan)
            # The steps since are taken once more, with the data that follow: also the last one of a run.
            self._go_back()
            self._around.book.write_verdict(self.state, verdict, self.guard)
            self._answer(verdict, taken)
        return not odd

    def _go_back(self) -> None:
        """Return to the last good student; steps that were done since count no more, the data go on."""
        good = self._around.keeper.back_to_last_good(self.state.snapshot)
        self.guard.go_back(good.guard)
        counts = good.model_dump(include={"step", "positions", "tokens", "phase", "order_began"})
        update = {**counts, "snapshot": good.step, "best": good.best, "guard": self.guard.state}
        self.state = self.state.model_copy(update=update)

    def _enter_phase(self) -> None:
        """Begin the line of an order anew where a phase brings another one."""
        curriculum, state = self._run.curriculum, self.state
        phase = curriculum.phase_at(state.step)
        if phase == state.phase:
            return
        self.guard.enter(phase)
        began = state.place if curriculum.order_at(state.step).since == state.step else state.order_began
        self.state = state.model_copy(update={"phase": phase, "order_began": began})

    def _one_step(self) -> bool:
        run, state = self._run, self.state
        before = time.perf_counter()
        waited = self._around.loader.waited_seconds
        terms = self.guard.in_force(run.curriculum.at(state.step))
        begin = state.place - state.order_began
        size = run.plan.size_of(state.step)
        batch = self._around.loader.take(begin, begin + size, run.orders[run.curriculum.order_at(state.step).order])
        height = rate(run.settings.schedule, run.plan, state.step)
        set_rate(run.train_state.optimizer, self.guard.state.rate_factor * height)
        took = forward_backward(run.train_state, batch, terms)
        scaler = run.train_state.scaler
        verdict = self.guard.judge(took.findings, took.gradient_norm, None if scaler is None else scaler.get_scale())
        accepted = verdict.kind == "accept"
        if accepted:
            apply(run.train_state, took, run.guard.clip)
        else:
            drop(run.train_state)
        self.state = state.model_copy(
            update={
                "step": state.step + accepted,
                "place": state.place + size,
                "positions": state.positions + took.positions * accepted,
                "tokens": state.tokens + took.tokens * accepted,
                "seconds": time.perf_counter() - self._started,
                "guard": self.guard.state,
            }
        )
        self.last = took
        spent = (time.perf_counter() - before, self._around.loader.waited_seconds - waited)
        tried = state.step + 1
        if verdict.kind in ("rollback", "stop"):
            self._go_back()
        self._tell(took, terms, verdict, spent)
        if not accepted:
            self._answer(verdict, tried)
        return accepted

    def _answer(self, verdict: GuardVerdict, tried: int) -> None:
        """Say what became of a step that does not count, and end the run if that is the verdict."""
        around, state = self._around, self.state
        if verdict.kind == "stop":
            around.keeper.save(state)
            raise self.guard.failure(tried - 1, verdict)
        if verdict.kind == "rollback":
            around.watch.warn(
                f"step {tried:,}: {verdict.why}; back to the student of step {state.step:,}, with fresh moments and "
                f"{state.guard.rate_factor:g} of the learning rate"
            )
        elif verdict.kind == "skip":
            around.watch.warn(f"step {tried:,} is skipped: {verdict.why}")
        else:
            around.watch.say(f"step {tried:,} is skipped: {verdict.why}")

    def _tell(self, took: StepResult, terms: ActiveTerms, verdict: GuardVerdict, spent: tuple[float, float]) -> None:
        around = self._around
        news = around.book.write_step(self.state, took, terms, verdict, self.guard, spent)
        around.watch.stepped(news)
