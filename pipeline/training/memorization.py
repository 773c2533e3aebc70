"""Samples used often enough to be memorized: a warning before the first step, and a mark on the train/eval gap.

In: the plan, curriculum and cache of a run. Out: the number of epochs up to which that costs little, a warning. A
student trained on the same samples again and again fits their noise: its loss on them falls below its distance from the
teacher. Exact targets have no noise, and samples of the validation split stay unbiased.
"""

import math
from collections.abc import Iterator

from kdpipe.pipeline.losses.exactness import uses_draws
from kdpipe.pipeline.losses.terms import LOGIT_NAMES
from kdpipe.pipeline.training.curriculum import Curriculum
from kdpipe.pipeline.training.schedules import StepPlan
from kdpipe.schemas.target_kinds import PROFILES, Threshold
from kdpipe.schemas.targets import TargetSpec

# Epochs up to which memorized samples cost little, measured at 15,000 and 50,000 positions; the power for more
# positions is a guess (docs/experiments.md#many-epochs).
EPOCHS, POSITIONS, POWER = 6.0, 50_000, 0.5


def reads_draws(curriculum: Curriculum, spec: TargetSpec) -> bool:
    """Whether a loss of the run uses samples."""
    options = curriculum.options
    names = [name for name in LOGIT_NAMES if name in curriculum.terms]
    return any(
        uses_draws(name, spec, temperature, options) for name in names for temperature in curriculum.temperatures
    )


def epochs_before_memorization(n_positions: int) -> int:
    """How often the samples of so many positions can be used before they are memorized."""
    return max(1, math.floor(EPOCHS * math.pow(max(1.0, n_positions / POSITIONS), POWER)))


def most_epochs(curriculum: Curriculum, spec: TargetSpec, n_positions: int) -> int | None:
    """The same for a run; None without samples."""
    return epochs_before_memorization(n_positions) if reads_draws(curriculum, spec) else None


def warnings(plan: StepPlan, curriculum: Curriculum, spec: TargetSpec, n_positions: int) -> Iterator[str]:
    """The warning for a run whose epochs exceed that."""
    most = most_epochs(curriculum, spec, n_positions)
    if most is None or plan.epochs <= most:
        return
    yield (
        f"{plan.epochs:.4g} epochs over the samples of {n_positions:,} positions: after about {most} the student "
        f"memorizes them, and its training loss no longer measures its distance from the teacher; cache more data,"
        f"{_finer_profile(spec)} or give --epochs {most}"
    )


def _finer_profile(spec: TargetSpec) -> str:
    keep = spec.keep
    return " use --profile fine," if isinstance(keep, Threshold) and keep.tau > PROFILES["fine"] else ""
