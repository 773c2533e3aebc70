"""The length of a run and its learning rate schedule, counted in accepted optimizer steps.

In: `TrainSettings` and the number of training sequences. Out: a `StepPlan`, lines that describe it, the learning rate
factor of a step. A skipped step does not count: the next sequences are used instead.
"""

from dataclasses import dataclass
from math import cos, pi
from typing import assert_never

from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.train_settings import ScheduleSettings, TrainSettings

# Default number of evaluations and of checkpoints.
PER_RUN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """A run of `n_read` sequences in `n_steps` steps; an epoch has `n_sequences`.

    The learning rate rises over the first `n_warmup` steps and decays from step `decay_from`, which is `n_steps`
    without a decay. The checkpoint of step `saved_before_decay` is kept, so that the run can be lengthened.
    """

    n_sequences: int
    n_read: int
    n_steps: int
    batch_size: int
    accumulate: int
    n_warmup: int
    decay_from: int
    evaluate_every: int
    save_every: int
    saved_before_decay: int | None = None

    @property
    def step_size(self) -> int:
        """Sequences per step, except the last."""
        return self.batch_size * self.accumulate

    @property
    def epochs(self) -> float:
        """How often each sequence is used."""
        return self.n_read / self.n_sequences

    def size_of(self, step: int) -> int:
        """Sequences of a step; the last step has the remainder."""
        return min(self.step_size, self.n_read - step * self.step_size)


def make_plan(settings: TrainSettings, n_sequences: int) -> StepPlan:
    """Plan a run by `max_steps`, or else by epochs."""
    if n_sequences < 1:
        raise ConfigError(
            "the cache has no training sequences",
            hint="check its train split with kdpipe cache inspect",
        )
    run, schedule = settings.run, settings.schedule
    size = run.batch_size * run.accumulate
    if run.max_steps is None:
        n_read = max(1, round((run.epochs or 1.0) * n_sequences))
    else:
        n_read = run.max_steps * size
    n_steps = -(-n_read // size)
    n_warmup = round(schedule.warmup * n_steps) if schedule.warmup < 1 else int(schedule.warmup)
    if schedule.warmup >= 1:
        _check_warmup(schedule, n_steps, n_warmup)
    elif schedule.kind != "constant":
        n_warmup = min(n_warmup, n_steps - 1)
    often = max(1, n_steps // PER_RUN)
    decay_from = _decay_from(schedule, n_steps, n_warmup)
    return StepPlan(
        n_sequences=n_sequences,
        n_read=n_read,
        n_steps=n_steps,
        batch_size=run.batch_size,
        accumulate=run.accumulate,
        n_warmup=n_warmup,
        decay_from=decay_from,
        evaluate_every=settings.evaluation.every or often,
        save_every=settings.saving.every or often,
        saved_before_decay=decay_from if schedule.kind == "wsd" and decay_from < n_steps else None,
    )


def _check_warmup(schedule: ScheduleSettings, n_steps: int, n_warmup: int) -> None:
    """Refuse a number of warm-up steps that leaves no step at the peak, or none for the decay."""
    n_decay = {"constant": 0, "wsd": max(1, round(schedule.decay * n_steps))}.get(schedule.kind, 1)
    if n_warmup + n_decay > n_steps:
        raise ConfigError(
            f"schedule.warmup is {counted(n_warmup, 'step')}; the run has {counted(n_steps, 'step')}, {n_decay:,} of"
            " them for the decay",
            hint="lower --warmup, or give a share such as --warmup 10%",
        )


def _decay_from(schedule: ScheduleSettings, n_steps: int, n_warmup: int) -> int:
    """The first step of the decay, which has at least one; without warm-up the first step is always at the peak."""
    if schedule.kind == "constant":
        return n_steps
    n_decay = max(1, round(schedule.decay * n_steps)) if schedule.kind == "wsd" else n_steps
    return max(n_warmup, 1, n_steps - n_decay)


def decay_progress(plan: StepPlan, step: int) -> float:
    """Progress of the decay: 0 before it, 1 at the last step of the run."""
    if step < plan.decay_from or plan.decay_from == plan.n_steps:
        return 0.0
    return min(1.0, (step - plan.decay_from + 1) / (plan.n_steps - plan.decay_from))


def lr_factor(schedule: ScheduleSettings, plan: StepPlan, step: int) -> float:
    """The factor of the peak learning rate once `step` optimizer steps are done."""
    if step < plan.n_warmup:
        return (step + 1) / plan.n_warmup
    progress = decay_progress(plan, step)
    match schedule.kind:
        case "cosine":
            left = (1 + cos(pi * progress)) / 2
        case "linear" | "wsd" | "constant":
            left = 1 - progress
        case _:
            assert_never(schedule.kind)
    return schedule.floor + (1 - schedule.floor) * left


def lines(schedule: ScheduleSettings, plan: StepPlan) -> list[str]:
    """The plan, as lines to print."""
    epochs = f"{plan.epochs:.4g} epoch{'' if plan.epochs == 1 else 's'}"
    whole = f"{counted(plan.n_read, 'sequence')}, {epochs} of {plan.n_sequences:,}"
    batches = counted(plan.accumulate, "batch", "batches")
    size = f"{plan.batch_size:,} per batch x {batches} = {counted(plan.step_size, 'sequence')} per step"
    last = plan.size_of(plan.n_steps - 1)
    steps = counted(plan.n_steps, "optimizer step") + (f", the last with {last:,}" if last != plan.step_size else "")
    decay = plan.saved_before_decay
    before_decay = "" if decay is None else f", at step {decay:,} before the decay,"
    return [
        f"data        {whole}",
        f"steps       {steps}: {size}",
        f"schedule    {_shape(schedule, plan)}",
        f"evaluation  {_interval(plan.evaluate_every)} and at the end",
        f"checkpoints {_interval(plan.save_every)}{before_decay} and at the end",
    ]


def counted(n: int, singular: str, plural: str | None = None) -> str:
    """A number with its noun: 1 step, 5 steps."""
    return f"{n:,} {singular if n == 1 else plural or f'{singular}s'}"


def _interval(n: int) -> str:
    return "every step" if n == 1 else f"every {n:,} steps"


def _shape(schedule: ScheduleSettings, plan: StepPlan) -> str:
    warmup = "no warm-up"
    if plan.n_warmup:
        share = plan.n_warmup / plan.n_steps
        warmup = f"warm-up {plan.n_warmup:,} of {counted(plan.n_steps, 'step')} ({share:.0%})"
    parts = [f"{schedule.kind}: {warmup}"]
    n_constant = plan.decay_from - plan.n_warmup
    if n_constant:
        parts.append(f"constant for {n_constant:,}")
    if plan.decay_from < plan.n_steps:
        parts.append(f"decay to {schedule.floor:.4g} of the peak over {plan.n_steps - plan.decay_from:,}")
    return ", ".join(parts)
