"""A run that is made longer: the checkpoint after which nothing has happened yet that depends on the number of steps.

In: the folder of a run, a run that is asked for there and takes more steps. Out: where it goes on, so that it is to the
bit the run that was as long from the start; a refusal that names the first step that would have been another.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kdpipe.pipeline.losses.terms import ActiveTerms
from kdpipe.pipeline.training import checkpoints, run_folder
from kdpipe.pipeline.training import completed_run as finished_run
from kdpipe.pipeline.training.cache_requirements import default_tail_weight
from kdpipe.pipeline.training.curriculum import ActiveOrder, Curriculum
from kdpipe.pipeline.training.prepare import RunInputs
from kdpipe.pipeline.training.schedules import StepPlan, counted, make_plan, rate
from kdpipe.schemas.checkpoint import RunRecord
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.train_settings import TrainSettings

# What the length is said by, and what is a share of it: these are compared by what they do to each step.
MAY_DIFFER: Final = (
    *run_folder.MAY_DIFFER,
    "settings.run.epochs",
    "settings.run.max_steps",
    "settings.run.phases",
    "settings.schedule.",
    "settings.evaluation.every",
)
# Schedules whose every step depends on the number of steps.
_WHOLE: Final = ("linear", "cosine")
_ANEW: Final = "give --out a new folder, or --overwrite to begin anew"


@dataclass(frozen=True, slots=True, kw_only=True)
class LongerRun:
    """How many steps a run had, and the checkpoint that it goes on from; None where it has none yet."""

    n_before: int
    begin: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """Everything about a step that follows from the settings; `sequences` is how many, `phase` its number."""

    learning_rate: float
    sequences: int
    losses: ActiveTerms | None
    order: ActiveOrder | None
    phase: int | None
    evaluation: bool


class _StepCourse:
    """The steps of a run."""

    def __init__(self, settings: TrainSettings, n_sequences: int, tail_weight: float, *, validates: bool) -> None:
        self.settings, self._validates = settings, validates
        self.plan: StepPlan = make_plan(settings, n_sequences)
        self.curriculum = Curriculum(settings, self.plan, tail_weight)
        self.changes = bool(settings.run.phases) or settings.losses.alpha_schedule != "constant"

    def step(self, number: int, *, curriculum: bool) -> _Step:
        """The step after `number` others."""
        done, plan = number + 1, self.plan
        return _Step(
            learning_rate=rate(self.settings.schedule, plan, number),
            sequences=plan.size_of(number),
            losses=self.curriculum.at(number) if curriculum else None,
            order=self.curriculum.order_at(number) if curriculum else None,
            phase=self.curriculum.phase_at(number) if curriculum else None,
            evaluation=self._validates and (done % plan.evaluate_every == 0 or done == plan.n_steps),
        )


def find_longer_run(
    folder: Path, prospect: RunInputs, asked: RunRecord, warn: Callable[[str], None]
) -> LongerRun | None:
    """How a run becomes the longer one that is asked for; None where a folder holds no run, this run, or another."""
    if not (folder / run_folder.RECORD).is_file():
        return None
    found = run_folder.stored(folder, asked)
    if not run_folder.differences(found, asked) or run_folder.differences(found, asked, MAY_DIFFER):
        return None
    there, here = (_course(settings, prospect) for settings in (found.settings, asked.settings))
    if here.plan.n_read <= there.plan.n_read:
        return None
    newest = checkpoints.latest(folder, found, warn)
    if newest is None:
        return LongerRun(n_before=there.plan.n_steps, begin=None)
    n_done = checkpoints.step_of(newest)
    n_same = _n_same(there, here, n_done)
    if n_same < (needed := _needed(there, n_done)):
        raise _refusal(folder, there, here, n_same, needed, prospect)
    begin = checkpoints.newest_until(folder, n_same, found)
    if begin is None or (checkpoints.step_of(begin) == 0 and n_done):
        raise ConfigError(
            f"{folder} holds a run of {counted(there.plan.n_steps, 'step')} that cannot be lengthened: it has no "
            f"checkpoint of step {n_same:,} or before, and the steps after it depend on the number of steps",
            hint=_ANEW,
        )
    return LongerRun(n_before=there.plan.n_steps, begin=begin)


def begin_longer_run(folder: Path, asked: RunRecord, longer: LongerRun, say: Callable[[str], None]) -> Path | None:
    """Make the folder that of the longer run.

    Checkpoints of the course that is left go first: a run that is killed then is still the shorter one.
    """
    if longer.begin is not None:
        later = checkpoints.drop_later(folder, longer.begin)
        removed = f"; removed, as of a course that is left: {', '.join(path.name for path in later)}" if later else ""
        step = checkpoints.step_of(longer.begin)
        say(f"a run of {counted(longer.n_before, 'step')} is lengthened: it goes on from step {step:,}{removed}")
    finished_run.remove(folder)
    run_folder.replace(folder, asked)
    return longer.begin


def _course(settings: TrainSettings, prospect: RunInputs) -> _StepCourse:
    tail_weight = default_tail_weight(prospect.cache.manifest.targets)
    return _StepCourse(settings, prospect.plan.n_sequences, tail_weight, validates=prospect.validation is not None)


def _needed(there: _StepCourse, n_done: int) -> int:
    """Steps that must be the same: all but the last, which may be shorter and is evaluated in any case, and but those
    of a fall that can be made again."""
    plan = there.plan
    needed = min(n_done, plan.n_steps - 1)
    return needed if there.settings.schedule.kind in _WHOLE else min(needed, plan.decay_from)


def _n_same(there: _StepCourse, here: _StepCourse, n_done: int) -> int:
    """How many of the first steps are the same in both runs."""
    if there.curriculum.terms != here.curriculum.terms:
        return 0
    changes = there.changes or here.changes
    for number in range(n_done):
        curriculum = changes or number == 0
        if there.step(number, curriculum=curriculum) != here.step(number, curriculum=curriculum):
            return number
    return n_done


def _refusal(
    folder: Path, there: _StepCourse, here: _StepCourse, n_same: int, needed: int, prospect: RunInputs
) -> ConfigError:
    """What would have been another at the first step that differs, and what makes it the same."""
    message = (
        f"{folder} holds a run of {counted(there.plan.n_steps, 'step')} that cannot be lengthened to "
        f"{here.plan.n_steps:,}: {_difference(there, here, n_same)}"
    )
    changed = _adapted(there, here)
    if changed is not None and _n_same(there, _course(changed, prospect), needed) >= needed:
        return ConfigError(message, hint=f"add {' '.join(_flags(here.settings, changed))}")
    kind = next((each.settings.schedule.kind for each in (there, here) if each.settings.schedule.kind in _WHOLE), None)
    if kind is None:
        return ConfigError(message, hint=_ANEW)
    return ConfigError(
        message,
        hint=f"every step of a {kind} schedule depends on the number of steps: {_ANEW}; runs with schedule.kind wsd or "
        f"constant can be lengthened, and --student {folder}/final begins a new run with this student",
    )


def _difference(there: _StepCourse, here: _StepCourse, number: int) -> str:
    old, new = (course.step(number, curriculum=True) for course in (there, here))
    step = f"step {number + 1:,}"
    if old.learning_rate != new.learning_rate:
        return f"the learning rate of {step} is {old.learning_rate:.4g} of its peak there, {new.learning_rate:.4g} here"
    if old.evaluation != new.evaluation:
        return f"{step} is evaluated {'there and not here' if old.evaluation else 'here and not there'}"
    if old.sequences != new.sequences:
        return f"{step} has {old.sequences:,} sequences there, {new.sequences:,} here"
    if old.phase != new.phase or old.order != new.order:
        return f"{step} is in another phase of run.phases"
    return f"{step} has other weights of its losses"


def _adapted(there: _StepCourse, here: _StepCourse) -> TrainSettings | None:
    """Settings with the warm-up and the interval of evaluations that the run has; None where these are the same."""
    settings = here.settings
    if there.plan.n_warmup != here.plan.n_warmup:
        share = _shortest_share(there.plan.n_warmup, here.plan.n_steps)
        settings = settings.model_copy(update={"schedule": settings.schedule.model_copy(update={"warmup": share})})
    if there.plan.evaluate_every != here.plan.evaluate_every:
        every = {"every": there.plan.evaluate_every}
        settings = settings.model_copy(update={"evaluation": settings.evaluation.model_copy(update=every)})
    return None if settings is here.settings else settings


def _shortest_share(part: int, whole: int) -> float:
    """The number with the fewest digits that gives a part of a whole."""
    shares = (round(part / whole, digits) for digits in range(1, 17))
    return next((share for share in shares if round(share * whole) == part), part / whole)


def _flags(given: TrainSettings, changed: TrainSettings) -> list[str]:
    """What is typed to change settings."""
    flags = []
    if given.schedule.warmup != changed.schedule.warmup:
        flags.append(f"--set schedule.warmup={changed.schedule.warmup}")
    if given.evaluation.every != changed.evaluation.every:
        flags.append(f"--set evaluation.every={changed.evaluation.every}")
    return flags
