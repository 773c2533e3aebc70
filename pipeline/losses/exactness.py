"""What a loss is called where it is logged, and which losses a cache can serve.

In: names of losses, a temperature, what a cache keeps. Out: a name that says whether the number is exact, shifted by a
constant, a lower bound or coarse; or a refusal.
"""

from collections.abc import Iterable, Sequence

from torch import Tensor

from kdpipe.pipeline.batches.micro_batch import Targets
from kdpipe.pipeline.losses.teacher_bins import known_tail, neighbors, unknown_tail
from kdpipe.pipeline.losses.terms import LogitName, LogitTerm, LossOptions
from kdpipe.schemas.errors import Incompatible
from kdpipe.schemas.targets import TargetSpec

# They need no more of the teacher than the exact ids, or nothing.
EVERYWHERE = ("ce", "renormalized")
SHIFTED = "_shifted"
NO_TARGETS = "this cache holds tokens only, there is no teacher in it to learn from"
NO_TARGETS_HINT = "choose --mode output, or make a cache with another --targets"


def label(name: LogitName, spec: TargetSpec, temperature: float, shape: LossOptions) -> str:
    """The name to log: `_bound` for a lower bound by one bin, `_coarse` at a temperature without draws, `_shifted`
    where the gradient is unbiased but the value lacks the entropy of the teacher within the bin."""
    if name in EVERYWHERE or spec.keep.kind == "state":
        return name
    if temperature != spec.target_temperature:
        return f"{name}_coarse"
    if not uses_draws(name, spec, temperature, shape):
        return f"{name}_bound"
    return f"{name}{SHIFTED}" if name == "forward_kl" and spec.is_shifted else name


def uses_draws(name: LogitName, spec: TargetSpec, temperature: float, shape: LossOptions) -> bool:
    """Whether a loss reads sampled draws: at their own temperature, with a weight for the tail."""
    if not spec.has_draws or temperature != spec.target_temperature or shape.tail_weight <= 0:
        return False
    return name == "forward_kl" or (name == "skew_kl" and spec.draw_values)


def check_spec(names: Iterable[LogitName], spec: TargetSpec, temperature: float) -> None:
    """Refuse losses that a cache cannot serve, by what its manifest says."""
    for name in names:
        if name == "ce":
            continue
        if spec.keep.kind == "none":
            raise Incompatible(NO_TARGETS, hint=NO_TARGETS_HINT)
        if name == "renormalized" or spec.keep.kind == "state":
            continue
        if not spec.tail_known:
            raise unknown_tail()
        neighbors(temperature, spec.temperatures)


def check_targets(
    terms: Sequence[LogitTerm], targets: Targets | None, shape: LossOptions, sequence_N: Tensor | None
) -> None:
    """The same of the targets of a batch; what is refused here has not been asked by `check_spec`."""
    for term in terms:
        if term.name == "ce":
            assert term.temperature == 1.0, "cross-entropy on labels knows no temperature"
            continue
        if targets is None:
            raise Incompatible(NO_TARGETS, hint=NO_TARGETS_HINT)
        if term.name == "renormalized" or targets.state_NH is not None:
            continue
        known_tail(targets)
        neighbors(term.temperature, targets.log_z)
        assert shape.tail_weight <= 1 or sequence_N is not None, "tail weights above 1 need the sequence of each row"
