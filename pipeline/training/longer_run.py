"""Lengthening a run: resume it with more steps, bit-identical to a run of that length from the start.

In: the folder of a run, and a run with more steps. Out: the checkpoint to resume from, before any step that depends on
the number of steps, or a refusal that names the first step that differs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kdpipe.pipeline.losses.terms import ActiveTerms
from kdpipe.pipeline.training import checkpoints, completed_run, run_folder
from kdpipe.pipeline.training.cache_requirements import default_tail_weight
from kdpipe.pipeline.training.curriculum import ActiveOrder, Curriculum
from kdpipe.pipeline.training.run import Run
from kdpipe.pipeline.training.schedules import StepPlan, counted, lr_factor, make_plan
from kdpipe.schemas.checkpoint import RunRecord
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.train_settings import TrainSettings

# The number of steps, and settings that are a share of it: compared by their effect on each step.
MAY_DIFFER: Final = (
    *run_folder.MAY_DIFFER,
    "settings.run.epochs",
    "settings.run.max_steps",
    "settings.run.phases",
    "settings.schedule.",
    "settings.evaluation.every",
)
# Schedules where every step depends on the number of steps.
_WHOLE: Final = ("linear", "cosine")
_START_OVER: Final = "choose another --out, or start over with --overwrite"


@dataclass(frozen=True, slots=True, kw_only=True)
class LongerRun:
    """The run's number of steps before, and the checkpoint to resume from, if it has any."""

    n_before: int
    start: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """Everything about a step that follows from settings."""

    learning_rate: float
    sequences: int
    losses: ActiveTerms | None
    order: ActiveOrder | None
    phase: int | None
    evaluation: bool


class _RunSteps:
    """The steps that settings lead to."""

    def __init__(self, settings: TrainSettings, n_sequences: int, tail_weight: float, *, validates: bool) -> None:
        self.settings, self._validates = settings, validates
        self.plan: StepPlan = make_plan(settings, n_sequences)
        self.curriculum = Curriculum(settings, self.plan, tail_weight)
        self.changes = bool(settings.run.phases) or settings.losses.alpha_schedule != "constant"

    def step(self, number: int, *, curriculum: bool) -> _Step:
        done, plan = number + 1, self.plan
        return _Step(
            learning_rate=lr_factor(self.settings.schedule, plan, number),
            sequences=plan.size_of(number),
            losses=self.curriculum.at(number) if curriculum else None,
            order=self.curriculum.order_at(number) if curriculum else None,
            phase=self.curriculum.phase_at(number) if curriculum else None,
            evaluation=self._validates and (done % plan.evaluate_every == 0 or done == plan.n_steps),
        )


def find_longer_run(folder: Path, run: Run, warn: Callable[[str], None]) -> LongerRun | None:
    """How to lengthen the run of a folder to `run`; None if the folder has no run, this one, or another one."""
    if not (folder / run_folder.RECORD).is_file():
        return None
    stored = run_folder.stored(folder, run.record)
    if not run_folder.differences(stored, run.record) or run_folder.differences(stored, run.record, MAY_DIFFER):
        return None
    stored_steps, new_steps = (_steps(settings, run) for settings in (stored.settings, run.settings))
    if new_steps.plan.n_read <= stored_steps.plan.n_read:
        return None
    newest = checkpoints.latest(folder, stored, warn)
    if newest is None:
        return LongerRun(n_before=stored_steps.plan.n_steps, start=None)
    n_done = checkpoints.step_of(newest)
    n_same = _n_same(stored_steps, new_steps, n_done)
    if n_same < (needed := _needed(stored_steps, n_done)):
        raise _refusal(folder, run, stored_steps, new_steps, n_same, needed)
    start = checkpoints.newest_until(folder, n_same, stored)
    if start is None or (checkpoints.step_of(start) == 0 and n_done):
        raise ConfigError(
            f"cannot lengthen the run of {counted(stored_steps.plan.n_steps, 'step')} in {folder}: it has no "
            f"checkpoint at or before step {n_same:,}, and later steps depend on the number of steps",
            hint=_START_OVER,
        )
    return LongerRun(n_before=stored_steps.plan.n_steps, start=start)


def lengthen(folder: Path, record: RunRecord, longer: LongerRun, say: Callable[[str], None]) -> Path | None:
    """Turn the folder into that of the longer run; the checkpoint to resume from.

    Later checkpoints are removed first: if killed then, the folder still has the shorter run.
    """
    if longer.start is not None:
        later = checkpoints.drop_later(folder, longer.start)
        removed = f"; later checkpoints removed: {', '.join(path.name for path in later)}" if later else ""
        step = checkpoints.step_of(longer.start)
        say(f"lengthening a run of {counted(longer.n_before, 'step')}: resuming from step {step:,}{removed}")
    completed_run.remove(folder)
    run_folder.replace(folder, record)
    return longer.start


def _steps(settings: TrainSettings, run: Run) -> _RunSteps:
    tail_weight = default_tail_weight(run.cache.manifest.targets)
    return _RunSteps(settings, run.plan.n_sequences, tail_weight, validates=run.validation is not None)


def _needed(stored: _RunSteps, n_done: int) -> int:
    """Steps that must be the same: all but the last, which may be shorter and is always evaluated, and but those of a
    decay that can be repeated."""
    plan = stored.plan
    needed = min(n_done, plan.n_steps - 1)
    return needed if stored.settings.schedule.kind in _WHOLE else min(needed, plan.decay_from)


def _n_same(stored: _RunSteps, new: _RunSteps, n_done: int) -> int:
    """How many of the first steps are the same."""
    if stored.curriculum.terms != new.curriculum.terms:
        return 0
    changes = stored.changes or new.changes
    for number in range(n_done):
        curriculum = changes or number == 0
        if stored.step(number, curriculum=curriculum) != new.step(number, curriculum=curriculum):
            return number
    return n_done


def _refusal(folder: Path, run: Run, stored: _RunSteps, new: _RunSteps, n_same: int, needed: int) -> ConfigError:
    """The first step that differs, and the options that make it the same."""
    message = (
        f"cannot lengthen the run of {counted(stored.plan.n_steps, 'step')} in {folder} to {new.plan.n_steps:,}: "
        f"{_difference(stored, new, n_same)}"
    )
    changed = _adapted(stored, new)
    if changed is not None and _n_same(stored, _steps(changed, run), needed) >= needed:
        return ConfigError(message, hint=f"add {' '.join(_flags(new.settings, changed))}")
    kinds = [steps.settings.schedule.kind for steps in (stored, new)]
    kind = next((kind for kind in kinds if kind in _WHOLE), None)
    if kind is None:
        return ConfigError(message, hint=_START_OVER)
    return ConfigError(
        message,
        hint=f"every step of a {kind} schedule depends on the number of steps: {_START_OVER}; runs with schedule.kind "
        f"wsd or constant can be lengthened, and --student {folder}/final starts a new run from this student",
    )


def _difference(stored: _RunSteps, new: _RunSteps, number: int) -> str:
    before, now = (steps.step(number, curriculum=True) for steps in (stored, new))
    step = f"step {number + 1:,}"
    if before.learning_rate != now.learning_rate:
        return (
            f"the learning rate factor of {step} is {before.learning_rate:.4g} in the run, {now.learning_rate:.4g} "
            "with these settings"
        )
    if before.evaluation != now.evaluation:
        return f"{step} {'has an' if before.evaluation else 'has no'} evaluation in the run, unlike with these settings"
    if before.sequences != now.sequences:
        return f"{step} has {before.sequences:,} sequences in the run, {now.sequences:,} with these settings"
    if before.phase != now.phase or before.order != now.order:
        return f"{step} is in another phase of run.phases"
    return f"{step} has other loss weights"


def _adapted(stored: _RunSteps, new: _RunSteps) -> TrainSettings | None:
    """Settings with the warm-up and evaluation interval of the stored run; None if these are the same."""
    settings = new.settings
    if stored.plan.n_warmup != new.plan.n_warmup:
        share = _shortest_share(stored.plan.n_warmup, new.plan.n_steps)
        settings = settings.model_copy(update={"schedule": settings.schedule.model_copy(update={"warmup": share})})
    if stored.plan.evaluate_every != new.plan.evaluate_every:
        every = {"every": stored.plan.evaluate_every}
        settings = settings.model_copy(update={"evaluation": settings.evaluation.model_copy(update=every)})
    return None if settings is new.settings else settings


def _shortest_share(part: int, whole: int) -> float:
    """The share with the fewest digits that gives a part of a whole."""
    shares = (round(part / whole, digits) for digits in range(1, 17))
    return next((share for share in shares if round(share * whole) == part), part / whole)


def _flags(given: TrainSettings, changed: TrainSettings) -> list[str]:
    """The options that change these settings."""
    flags = []
    if given.schedule.warmup != changed.schedule.warmup:
        flags.append(f"--warmup {changed.schedule.warmup}")
    if given.evaluation.every != changed.evaluation.every:
        flags.append(f"--eval-every {changed.evaluation.every}")
    return flags
