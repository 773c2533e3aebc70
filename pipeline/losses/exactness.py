"""How exact a loss is with the targets of a cache, its name in the logs, and which losses a cache can serve.

In: names of losses, a temperature, the target spec of a cache. Out: exact, unbiased, shifted by a constant, a lower
bound or coarse; or an error. Without torch, so that a cache is refused before it is imported.
"""

from collections.abc import Iterable, Mapping
from typing import Final, Literal

from kdpipe.pipeline.losses.terms import LogitName, LossOptions
from kdpipe.schemas.choices import Estimate
from kdpipe.schemas.errors import Incompatible
from kdpipe.schemas.losses import LOGIT_LOSSES
from kdpipe.schemas.targets import TargetSpec
from kdpipe.schemas.train_settings import PositionSelection

Exactness = Literal["exact", "biased", "unbiased", "shifted", "bound", "coarse"]
SHIFTED: Final = "_shifted"
SUFFIXES: Final[Mapping[Exactness, str]] = {
    "exact": "",
    "biased": "",
    "unbiased": "",
    "shifted": SHIFTED,
    "bound": "_bound",
    "coarse": "_coarse",
}
NO_TARGETS = "this cache holds tokens only, no teacher predictions"
NO_TARGETS_HINT = "use --mode output, or make a cache with --targets other than none"


def label(name: LogitName, spec: TargetSpec, temperature: float, options: LossOptions) -> str:
    """The name of a loss in logs and reports."""
    return name + SUFFIXES[exactness(name, spec, temperature, options)]


def exactness(name: LogitName, spec: TargetSpec, temperature: float, options: LossOptions) -> Exactness:
    """`bound`: a lower bound, by one bin; `coarse`: so at a temperature without draws; `shifted`: the gradient is
    unbiased, the value lacks the teacher's entropy within the bin; `biased`: renormalized over the exact ids."""
    loss = LOGIT_LOSSES[name]
    if loss.compares == "label" or spec.keep.complete:
        return "exact"
    if loss.compares == "exact_ids":
        return "biased"
    if temperature != spec.target_temperature:
        return "coarse"
    if not uses_draws(name, spec, temperature, options):
        return "bound"
    return "shifted" if loss.draws == "unbiased" and spec.is_shifted else "unbiased"


def uses_draws(name: LogitName, spec: TargetSpec, temperature: float, options: LossOptions) -> bool:
    """Whether a loss reads sampled draws: at their own temperature, with a weight for the tail."""
    if not spec.has_draws or temperature != spec.target_temperature or options.tail_weight <= 0:
        return False
    match LOGIT_LOSSES[name].draws:
        case "unused":
            return False
        case "unbiased":
            return True
        case "unbiased_with_values":
            return spec.draw_values


def check_spec(names: Iterable[LogitName], spec: TargetSpec, temperature: float) -> None:
    """Refuse losses that a cache cannot serve, from its manifest alone."""
    for name in names:
        compares = LOGIT_LOSSES[name].compares
        if compares == "label":
            continue
        if not spec.keep.has_teacher:
            raise Incompatible(NO_TARGETS, hint=NO_TARGETS_HINT)
        if compares == "exact_ids" or spec.keep.complete:
            continue
        if not spec.tail_known:
            raise unknown_tail()
        neighbors(temperature, spec.temperatures)


def estimate(spec: TargetSpec) -> Estimate | None:
    """How exact KL to the teacher at T=1 is with the targets of a cache; None where it is unavailable."""
    if spec.keep.complete:
        return "exact"
    if not spec.tail_known:
        return None
    return "unbiased" if spec.has_draws and spec.target_temperature == 1.0 else "lower_bound"


def neighbors(temperature: float, stored: Iterable[float]) -> tuple[float, float]:
    """The stored temperatures around one; log_z at 1 is always known."""
    known = sorted({1.0, *stored})
    if not known[0] <= temperature <= known[-1]:
        listed = ", ".join(f"{t:g}" for t in known)
        held = f"temperature {listed}" if len(known) == 1 else f"temperatures {listed} and any between"
        command = f"kdpipe cache-teacher --target-temperature {temperature:g}"
        raise Incompatible(
            f"the cache supports {held}; requested: {temperature:g}",
            hint=f"train at a supported temperature, or make a cache for this one: {command}",
        )
    return max(t for t in known if t <= temperature), min(t for t in known if t >= temperature)


def unknown_tail() -> Incompatible:
    return Incompatible(
        "this cache does not record how much probability mass its targets leave out",
        hint="use --mode output, or --set losses.logit=renormalized, which ignores that mass",
    )


def statistic_missing(selection: PositionSelection) -> Incompatible:
    return Incompatible(
        f"losses.select uses {selection.by}, which this cache does not contain",
        hint="select by student_entropy or student_cross_entropy",
    )
