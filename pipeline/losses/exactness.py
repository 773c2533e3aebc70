"""How exact a loss is with the targets of a cache, its name in the logs, and which losses a cache can serve.

In: names of losses, a temperature, the target spec of a cache. Out: exact, unbiased, shifted by a constant, a lower
bound or coarse; or an error.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

from torch import Tensor

from kdpipe.pipeline.batches.micro_batch import Targets
from kdpipe.pipeline.losses.teacher_bins import known_tail, neighbors, unknown_tail
from kdpipe.pipeline.losses.terms import LogitName, LogitTerm, LossOptions
from kdpipe.schemas.errors import Incompatible
from kdpipe.schemas.losses import LOGIT_LOSSES
from kdpipe.schemas.targets import TargetSpec

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
    if loss.compares == "label" or spec.keep.kind == "state":
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
        if spec.keep.kind == "none":
            raise Incompatible(NO_TARGETS, hint=NO_TARGETS_HINT)
        if compares == "exact_ids" or spec.keep.kind == "state":
            continue
        if not spec.tail_known:
            raise unknown_tail()
        neighbors(temperature, spec.temperatures)


def check_targets(
    terms: Sequence[LogitTerm], targets: Targets | None, options: LossOptions, sequence_N: Tensor | None
) -> None:
    """The same from the targets of a batch, for callers without a manifest."""
    for term in terms:
        if not term.needs_targets:
            assert term.temperature == 1.0, "cross-entropy on labels has no temperature"
            continue
        if targets is None:
            raise Incompatible(NO_TARGETS, hint=NO_TARGETS_HINT)
        if term.loss.compares == "exact_ids" or targets.state_NH is not None:
            continue
        known_tail(targets)
        neighbors(term.temperature, targets.log_z)
        assert options.tail_weight <= 1 or sequence_N is not None, "tail weights above 1 need the sequence of each row"
