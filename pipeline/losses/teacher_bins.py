"""`TeacherBins`: the teacher at one temperature from cached entries: exact ids, and one bin for all other ids.

In: `Targets` of some rows, a temperature. Out: log-probabilities for the formulas, and what draws add; or an error
where the cache lacks the temperature or the tail mass.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kdpipe.pipeline.batches.micro_batch import Targets
from kdpipe.pipeline.losses.exactness import NO_TARGETS, NO_TARGETS_HINT, neighbors, unknown_tail
from kdpipe.pipeline.losses.terms import LogitTerm, LossOptions
from kdpipe.schemas.errors import Incompatible

# Log of the smallest normal float32: the logarithm used for a teacher's probability of 0.
LEAST = -87.0
# Log of 0 in sums of exponentials, at any temperature; minus infinity would give NaN.
NOTHING = -1e30


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherBins:
    """K entries and a bin behind them: `logp` of the exact ids and the bin, 0 where `present` is false.

    At the target temperature only: the weights of the draws, their log p where cached, and `bin_plogp_C`, the sum of
    p log p over the bin.
    """

    present_CB: Tensor
    logp_CB: Tensor
    is_entry_CK: Tensor
    is_draw_CK: Tensor
    draw_weights_CK: Tensor | None = None
    draw_logp_CK: Tensor | None = None
    bin_plogp_C: Tensor | None = None

    @property
    def log_bin_C(self) -> Tensor:  # noqa: N802  # a shape suffix
        """Log of the mass outside the exact ids."""
        return self.logp_CB[:, -1]


def bins(targets: Targets, temperature: float, vocabulary_size: int, dtype: torch.dtype) -> TeacherBins:
    """The teacher's distribution over exact ids and bin."""
    is_exact_CK, is_entry_CK = exact_and_entries(targets)
    is_draw_CK = is_entry_CK & ~is_exact_CK
    at_target = temperature == targets.target_temperature
    if at_target and temperature != 1.0:
        logp_CK = targets.weights_NK.to(dtype).log()
    else:
        logp_CK = tempered(targets, temperature, dtype)
    logp_CK = torch.where(is_exact_CK, logp_CK.clamp(min=LEAST), 0.0)
    log_bin_C = _log_bin(targets, temperature, logp_CK, is_exact_CK, is_draw_CK)
    has_bin_C = targets.n_exact_N < vocabulary_size
    logp_CB = torch.cat([logp_CK, torch.where(has_bin_C, log_bin_C.clamp(min=LEAST, max=0.0), 0.0)[:, None]], dim=1)
    present_CB = torch.cat([is_exact_CK, has_bin_C[:, None]], dim=1)
    exact = TeacherBins(present_CB=present_CB, logp_CB=logp_CB, is_entry_CK=is_entry_CK, is_draw_CK=is_draw_CK)
    return _with_draws(exact, targets, temperature) if at_target else exact


def check_targets(
    terms: Sequence[LogitTerm], targets: Targets | None, options: LossOptions, sequence_N: Tensor | None
) -> None:
    """Refuse losses that the targets of a batch cannot serve, for callers without a manifest."""
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


def exact_and_entries(targets: Targets) -> tuple[Tensor, Tensor]:
    """Masks of the K places: exact ids, and entries of any kind (not padding)."""
    slots_K = torch.arange(targets.ids_NK.shape[1], device=targets.ids_NK.device)
    return slots_K < targets.n_exact_N[:, None], slots_K < targets.count_N[:, None]


def tempered(targets: Targets, temperature: float, dtype: torch.dtype) -> Tensor:
    """Log p_T of entries with a cached log p."""
    logprobs_CK = targets.logprobs_NK.to(dtype)
    if temperature == 1.0:
        return logprobs_CK
    return logprobs_CK / temperature - log_z(targets, temperature, dtype)[:, None]


def log_z(targets: Targets, temperature: float, dtype: torch.dtype) -> Tensor:
    """Log of sum of p^(1/T): as stored, or interpolated linearly in 1/T between the stored temperatures around T."""
    below, above = neighbors(temperature, targets.log_z)
    ones_C = targets.count_N.new_zeros(targets.count_N.shape, dtype=dtype)
    low_C, high_C = (ones_C if t == 1.0 else targets.log_z[t].to(dtype) for t in (below, above))
    if below == above:
        return low_C
    share = (1 / temperature - 1 / below) / (1 / above - 1 / below)
    return low_C + share * (high_C - low_C)


def kept_mass(targets: Targets, temperature: float) -> Tensor:
    """The mass that the exact ids of each row hold at a temperature."""
    is_exact_NK, _ = exact_and_entries(targets)
    p_NK = tempered(targets, temperature, torch.float32).clamp(min=LEAST).exp()
    return torch.where(is_exact_NK, p_NK, 0.0).sum(dim=1).clamp(max=1.0)


def _log_bin(targets: Targets, temperature: float, logp_CK: Tensor, is_exact_CK: Tensor, is_draw_CK: Tensor) -> Tensor:
    """Log of the mass outside the exact ids.

    1 - sum has few digits where it is small, and log_z is rounded. Above T=1, sum of p^(1/T) is at least
    (sum of p)^(1/T), below it at most that: log_tail bounds the result.
    """
    log_tail_C = known_tail(targets).to(logp_CK.dtype)
    if temperature == 1.0:
        return log_tail_C
    left_C = 1.0 - torch.where(is_exact_CK, logp_CK.exp(), 0.0).sum(dim=1)
    if temperature == targets.target_temperature:
        drawn_C = torch.where(is_draw_CK, targets.weights_NK.to(logp_CK.dtype), 0.0).sum(dim=1)
        left_C = torch.where(drawn_C > 0, drawn_C, left_C)
    log_left_C = left_C.clamp(min=math.exp(LEAST)).log()
    bound_C = log_tail_C / temperature - log_z(targets, temperature, logp_CK.dtype)
    return torch.maximum(log_left_C, bound_C) if temperature > 1 else torch.minimum(log_left_C, bound_C)


def known_tail(targets: Targets) -> Tensor:
    """The log mass outside the exact ids at T=1, which some imports lack."""
    if targets.log_tail_N is None:
        raise unknown_tail()
    return targets.log_tail_N


def _with_draws(teacher: TeacherBins, targets: Targets, temperature: float) -> TeacherBins:
    """Add the draws: their weights, their log p where cached, the sum of p log p over the bin.

    Without values that sum follows from the entropy at T=1; at another T the entropy within the bin is left out.
    """
    dtype, log_bin_C = teacher.logp_CB.dtype, teacher.log_bin_C
    weights_CK = torch.where(teacher.is_draw_CK, targets.weights_NK.to(dtype), 0.0)
    sums_C1 = weights_CK.sum(dim=1, keepdim=True)
    weights_CK = weights_CK * torch.where(sums_C1 > 0, log_bin_C.exp()[:, None] / sums_C1, 0.0)
    logp_CK: Tensor | None = None
    if targets.draws_have_values:
        own_CK = tempered(targets, temperature, dtype).clamp(min=LEAST)
        logp_CK = torch.where(teacher.is_draw_CK, own_CK, 0.0)
        plogp_C = (weights_CK * logp_CK).sum(dim=1)
    elif temperature == 1.0 and targets.entropy_N is not None:
        exact_CK = teacher.logp_CB[:, :-1]
        plogp_C = -targets.entropy_N.to(dtype) - (exact_CK.exp() * exact_CK).sum(dim=1)
    else:
        plogp_C = log_bin_C.exp() * log_bin_C
    return replace(teacher, draw_weights_CK=weights_CK, draw_logp_CK=logp_CK, bin_plogp_C=plogp_C)
