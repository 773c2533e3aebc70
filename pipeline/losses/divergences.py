"""The formulas of all logit losses, one number per row: from log p and log q over bins, and from the draws in the bin.

In: the teacher as `TeacherBins` (or whole), the student's logits at the kept ids and at the label and the log-sum-exp
of the rest, all float32. Out: raw losses, differentiable with respect to these few numbers. See docs/losses.md.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from kdpipe.pipeline.batches.micro_batch import Targets, with_tensors
from kdpipe.pipeline.losses.teacher_bins import NOTHING, TeacherBins, bins, exact_and_entries
from kdpipe.pipeline.losses.terms import LogitTerm, LossOptions, function_of
from kdpipe.schemas.losses import LogitLoss


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentRows:
    """The student at C rows: logits at K kept ids and at the label, log-sum-exp of logits / T over all other ids."""

    label_C: Tensor
    rest_C: Mapping[float, Tensor]
    kept_CK: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRows:
    """Labels and teacher of some rows; `tail_scale_N` multiplies what the draws add."""

    labels_N: Tensor
    targets: Targets | None
    tail_scale_N: Tensor | None
    vocabulary_size: int

    @property
    def has_states(self) -> bool:
        """Whether the teacher's whole distribution can be computed."""
        return self.targets is not None and self.targets.state_NH is not None

    def take(self, piece: slice) -> "TargetRows":
        return TargetRows(
            labels_N=self.labels_N[piece],
            targets=None if self.targets is None else with_tensors(self.targets, lambda tensor: tensor[piece]),
            tail_scale_N=None if self.tail_scale_N is None else self.tail_scale_N[piece],
            vocabulary_size=self.vocabulary_size,
        )


def forward_kl(logp: Tensor, logq: Tensor, options: LossOptions) -> Tensor:
    """sum p log(p/q)"""
    return kl(logp, logq)


def skew_kl(logp: Tensor, logq: Tensor, options: LossOptions) -> Tensor:
    """sum p log(p/m), m = skew p + (1 - skew) q"""
    return kl(logp, mixture(logp, logq, options.skew))


def reverse_kl(logp: Tensor, logq: Tensor, options: LossOptions) -> Tensor:
    """sum q log(q/p)"""
    return kl(logq, logp)


def jsd(logp: Tensor, logq: Tensor, options: LossOptions) -> Tensor:
    """beta sum p log(p/m) + (1 - beta) sum q log(q/m), m = beta p + (1 - beta) q"""
    logm = mixture(logp, logq, options.beta)
    student = kl(logq, logm)
    return options.beta * kl(logp, logm) + (1 - options.beta) * student


def total_variation(logp: Tensor, logq: Tensor, options: LossOptions) -> Tensor:
    """sum |p - q| / 2"""
    return (logp.exp() - logq.exp()).abs().sum(dim=-1) / 2


def kl(logp: Tensor, logq: Tensor) -> Tensor:
    """sum p log(p/q) over the last dimension, from logarithms; places with p = q add nothing."""
    return (logp.exp() * (logp - logq)).sum(dim=-1)


def mixture(logp: Tensor, logq: Tensor, share: float) -> Tensor:
    """Log of share p + (1 - share) q."""
    return torch.logaddexp(logp + math.log(share), logq + math.log1p(-share))


def row_loss(term: LogitTerm, student: StudentRows, rows: TargetRows, options: LossOptions) -> Tensor:
    """One loss of every row, before weight and factor."""
    rest_C, compares = student.rest_C[term.temperature], term.loss.compares
    if student.kept_CK is None or rows.targets is None:
        assert compares == "label", f"{term.name} needs targets"
        return rest_C - student.label_C / term.temperature
    is_exact_CK, is_entry_CK = exact_and_entries(rows.targets)
    tempered_CK = student.kept_CK / term.temperature
    all_C = torch.logaddexp(_log_sum(tempered_CK, is_entry_CK), rest_C)
    if compares == "label":
        return all_C - student.label_C
    logq_CK = torch.where(is_entry_CK, tempered_CK - all_C[:, None], 0.0)
    if compares == "exact_ids":
        return _on_exact_ids(term, rows.targets, logq_CK, is_exact_CK, options)
    if compares == "bins":
        teacher = bins(rows.targets, term.temperature, rows.vocabulary_size, rest_C.dtype)
        log_bin_C = torch.logaddexp(_log_sum(tempered_CK, teacher.is_draw_CK), rest_C) - all_C
        return _on_bins(term, rows, teacher, (logq_CK, log_bin_C), options)
    assert_never(compares)


def _on_exact_ids(
    term: LogitTerm, targets: Targets, logq_CK: Tensor, is_exact_CK: Tensor, options: LossOptions
) -> Tensor:
    """The teacher renormalized over its exact ids, against the whole softmax: biased."""
    own_CK = torch.where(is_exact_CK, targets.logprobs_NK.to(logq_CK.dtype) / term.temperature, NOTHING)
    logt_CK = torch.where(is_exact_CK, own_CK.log_softmax(dim=1), 0.0)
    return divergence(term.loss, logt_CK, torch.where(is_exact_CK, logq_CK, 0.0), options)


def _on_bins(
    term: LogitTerm, rows: TargetRows, teacher: TeacherBins, student: tuple[Tensor, Tensor], options: LossOptions
) -> Tensor:
    """The loss on exact ids and one bin, and what the draws add; `student` is log q of the entries and of the bin."""
    logq_CK, log_bin_C = student
    logq_CB = torch.where(teacher.present_CB, torch.cat([logq_CK, log_bin_C[:, None]], dim=1), 0.0)
    loss_C = divergence(term.loss, teacher.logp_CB, logq_CB, options)
    if rows.tail_scale_N is None or teacher.draw_weights_CK is None:
        return loss_C
    tail_C = tail(term.loss, teacher, logq_CK, logq_CB[:, -1], options)
    return loss_C if tail_C is None else loss_C + rows.tail_scale_N * tail_C


def divergence(loss: LogitLoss, logp: Tensor, logq: Tensor, options: LossOptions) -> Tensor:
    """The loss's function of two distributions over the last dimension, from their logarithms."""
    assert loss.function is not None
    return function_of(loss.function)(logp, logq, options)


def tail(
    loss: LogitLoss, teacher: TeacherBins, logq_CK: Tensor, log_bin_C: Tensor, options: LossOptions
) -> Tensor | None:
    """The part of KL(p, m) that one bin hides: mass of the bin * KL(teacher within it, student within it).

    = sum over the bin of p log p - sum over draws of w log m - alpha (log alpha - log m(bin)). None where draws do not
    help a loss, or lack the values that it needs.
    """
    assert teacher.draw_weights_CK is not None and teacher.bin_plogp_C is not None
    if loss.draws == "unused":
        return None
    if loss.draws == "unbiased":
        logm_CK, logm_C = logq_CK, log_bin_C
    elif loss.draws == "unbiased_with_values":
        if teacher.draw_logp_CK is None:
            return None
        logm_CK = mixture(teacher.draw_logp_CK, logq_CK, options.skew)
        logm_C = mixture(teacher.log_bin_C, log_bin_C, options.skew)
    else:
        assert_never(loss.draws)
    drawn_C = (teacher.draw_weights_CK * logm_CK).sum(dim=1)
    hidden_C = teacher.bin_plogp_C - drawn_C - teacher.log_bin_C.exp() * (teacher.log_bin_C - logm_C)
    return torch.where(teacher.is_draw_CK.any(dim=1), hidden_C, 0.0)


def tail_scales(targets: Targets, options: LossOptions, sequence_N: Tensor | None) -> Tensor | None:
    """Multipliers of the rows' tail terms: the tail weight; above 1 divided by the sequence's mean tail mass."""
    if not options.tail_weight or targets.state_NH is not None or targets.log_tail_N is None:
        return None
    is_exact_NK, is_entry_NK = exact_and_entries(targets)
    mass_N = torch.where(is_entry_NK & ~is_exact_NK, targets.weights_NK.float(), 0.0).sum(dim=1)
    scales_N = torch.full_like(mass_N, options.tail_weight)
    if options.tail_weight <= 1:
        return scales_N
    assert sequence_N is not None, "a tail weight above 1 needs the sequence of each row"
    _, number_N = torch.unique(sequence_N, return_inverse=True)
    zeros_S = torch.zeros_like(mass_N)
    sums_S = zeros_S.index_add(0, number_N, mass_N)
    mean_N = (sums_S / zeros_S.index_add(0, number_N, torch.ones_like(mass_N)).clamp(min=1))[number_N]
    return torch.where(mean_N > 0, scales_N / mean_N, 0.0)


def clamped(losses: Sequence[Tensor], options: LossOptions) -> list[Tensor]:
    """Raw losses cut off at `clamp_loss`; what is not finite stays, for the guard to find."""
    most = options.clamp_loss
    return [x_C if most is None else torch.where(x_C.isfinite(), x_C.clamp(max=most), x_C) for x_C in losses]


def weighted_sum(losses: Sequence[Tensor], weights_TC: Tensor) -> Tensor:
    """The sum over terms and rows; rows of weight 0 add nothing, not even NaN."""
    parts = [torch.where(w_C != 0, w_C * x_C, 0.0).sum() for w_C, x_C in zip(weights_TC, losses, strict=True)]
    return torch.stack(parts).sum()


def _log_sum(values_CK: Tensor, chosen_CK: Tensor) -> Tensor:
    return torch.where(chosen_CK, values_CK, NOTHING).logsumexp(dim=1)
