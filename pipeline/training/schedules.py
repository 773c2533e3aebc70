"""How long a run is and what rate it learns at, counted in optimizer steps that were done.

In: `TrainSettings` and the number of sequences to learn from. Out: a `StepPlan`, its lines for a person, the rate's
factor at a step. A skipped step is none: its sequences are passed over, and the next ones in the line are read in their
place.
"""

from dataclasses import dataclass
from math import cos, pi

from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.train_settings import ScheduleSettings, TrainSettings

# Evaluations and checkpoints of a run that says nothing of them.
PER_RUN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """A run before it starts: `n_read` sequences of the `n_sequences` of an epoch, `step_size` of them a step.

    The learning rate climbs over the first `n_warmup` steps; it falls in the steps from `decay_from` on, which is
    `n_steps` if it never does. A checkpoint of the step `saved_before_fall` is kept, so that the run can be lengthened.
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
    saved_before_fall: int | None = None

    @property
    def step_size(self) -> int:
        """Sequences of a step but the last."""
        return self.batch_size * self.accumulate

    @property
    def epochs(self) -> float:
        """How often each sequence is read."""
        return self.n_read / self.n_sequences

    def size_of(self, step: int) -> int:
        """Sequences of a step: the last one takes what is left."""
        return min(self.step_size, self.n_read - step * self.step_size)


def make_plan(settings: TrainSettings, n_sequences: int) -> StepPlan:
    """Lay out a run over a cache of so many sequences: by epochs, or by steps where these are given."""
    if n_sequences < 1:
        raise ConfigError(
            "the cache holds no sequence to learn from",
            hint="look at it with kdpipe cache inspect; its split train must not be empty",
        )
    run, schedule = settings.run, settings.schedule
    size = run.batch_size * run.accumulate
    if run.max_steps is None:
        n_read = max(1, round((run.epochs or 1.0) * n_sequences))
    else:
        n_read = run.max_steps * size
    n_steps = -(-n_read // size)
    n_warmup = round(schedule.warmup * n_steps)
    if schedule.kind != "constant":
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
        saved_before_fall=decay_from if schedule.kind == "wsd" and decay_from < n_steps else None,
    )


def _decay_from(schedule: ScheduleSettings, n_steps: int, n_warmup: int) -> int:
    """The first step of the decay, which has at least one; without a warm-up the first step of the run is made at the
    peak, also if it is the only one."""
    if schedule.kind == "constant":
        return n_steps
    n_decay = max(1, round(schedule.decay * n_steps)) if schedule.kind == "wsd" else n_steps
    return max(n_warmup, 1, n_steps - n_decay)


def fallen(plan: StepPlan, step: int) -> float:
    """How far the decay has come at a step: 0 before it, 1 at the last step of the run."""
    if step < plan.decay_from or plan.decay_from == plan.n_steps:
        return 0.0
    return min(1.0, (step - plan.decay_from + 1) / (plan.n_steps - plan.decay_from))


def rate(schedule: ScheduleSettings, plan: StepPlan, step: int) -> float:
    """The factor of the base learning rate once `step` optimizer steps are done."""
    if step < plan.n_warmup:
        return (step + 1) / plan.n_warmup
    down = fallen(plan, step)
    left = (1 + cos(pi * down)) / 2 if schedule.kind == "cosine" else 1 - down
    return schedule.floor + (1 - schedule.floor) * left


def lines(schedule: ScheduleSettings, plan: StepPlan) -> list[str]:
    """What will run, for a person to read."""
    epochs = f"{plan.epochs:.4g} epoch{'' if plan.epochs == 1 else 's'}"
    whole = f"{counted(plan.n_read, 'sequence')}, {epochs} of {plan.n_sequences:,}"
    batches = counted(plan.accumulate, "batch", "batches")
    size = f"{counted(plan.batch_size, 'sequence')} a batch x {batches} = {plan.step_size} a step"
    last = plan.size_of(plan.n_steps - 1)
    told = counted(plan.n_steps, "optimizer step") + (f", the last of {last}" if last != plan.step_size else "")
    return [
        f"reads       {whole}",
        f"steps       {told}: {size}",
        f"rate        {_course(schedule, plan)}",
        f"evaluates   {_every(plan.evaluate_every)} and at the end",
        f"saves       {_saves(plan)}",
    ]


def counted(n: int, one: str, more: str | None = None) -> str:
    """A number with its noun: 1 step, 5 steps."""
    return f"{n:,} {one if n == 1 else more or f'{one}s'}"


def _saves(plan: StepPlan) -> str:
    fall = plan.saved_before_fall
    return f"{_every(plan.save_every)}{'' if fall is None else f', at step {fall:,} before the fall,'} and at the end"


def _every(n: int) -> str:
    return "every step" if n == 1 else f"every {n:,} steps"


def _course(schedule: ScheduleSettings, plan: StepPlan) -> str:
    up = f"up over {counted(plan.n_warmup, 'step')}" if plan.n_warmup else "no warm-up"
    parts = [f"{schedule.kind}: {up}"]
    n_held = plan.decay_from - plan.n_warmup
    if n_held:
        parts.append(f"held for {n_held:,}")
    if plan.decay_from < plan.n_steps:
        parts.append(f"down to {schedule.floor:.4g} of its height over {plan.n_steps - plan.decay_from:,}")
    return ", ".join(parts)
