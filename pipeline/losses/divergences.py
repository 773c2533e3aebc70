"""The formulas of all logit losses, a number a row: from log p and log q over bins, and from draws behind them.

In: the teacher as `TeacherBins` (or whole), the student's logits at the kept ids and at the label and the log-sum-exp
of the rest, all float32. Out: raw losses, differentiable to these few numbers. The formulas stand in docs/losses.md.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdpipe.pipeline.batches.micro_batch import Targets, with_tensors
from kdpipe.pipeline.losses.teacher_bins import NOTHING, TeacherBins, bins, exact_and_entries
from kdpipe.pipeline.losses.terms import LogitName, LogitTerm, LossOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentRows:
    """The student at C rows: logits at K kept ids and at the label, log-sum-exp of logits / T over all other ids."""

    label_C: Tensor
    rest_C: Mapping[float, Tensor]
    kept_CK: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRows:
    """What some rows are to say: the next token, and the teacher; `tail_scale_N` weighs what draws say."""

    labels_N: Tensor
    targets: Targets | None
    tail_scale_N: Tensor | None
    vocabulary_size: int

    @property
    def has_states(self) -> bool:
        """Whether the teacher's whole distribution can be made."""
        return self.targets is not None and self.targets.state_NH is not None

    def take(self, piece: slice) -> "TargetRows":
        """Some of them."""
        return TargetRows(
            labels_N=self.labels_N[piece],
            targets=None if self.targets is None else with_tensors(self.targets, lambda one: one[piece]),
            tail_scale_N=None if self.tail_scale_N is None else self.tail_scale_N[piece],
            vocabulary_size=self.vocabulary_size,
        )


def divergence(name: LogitName, logp: Tensor, logq: Tensor, shape: LossOptions) -> Tensor:
    """A divergence of two distributions over the last dimension, by their logarithms; places with p = q add nothing.

    forward_kl: sum p log(p/q). skew_kl: sum p log(p/m), m = skew p + (1 - skew) q. reverse_kl: sum q log(q/p).
    jsd: beta sum p log(p/m) + (1 - beta) sum q log(q/m), m = beta p + (1 - beta) q. total_variation: sum |p - q| / 2.
    """
    if name == "total_variation":
        return (logp.exp() - logq.exp()).abs().sum(dim=-1) / 2
    if name == "reverse_kl":
        return (logq.exp() * (logq - logp)).sum(dim=-1)
    if name == "jsd":
        logm = mixture(logp, logq, shape.beta)
        ours = (logq.exp() * (logq - logm)).sum(dim=-1)
        return shape.beta * (logp.exp() * (logp - logm)).sum(dim=-1) + (1 - shape.beta) * ours
    logm = mixture(logp, logq, shape.skew) if name == "skew_kl" else logq
    return (logp.exp() * (logp - logm)).sum(dim=-1)


def mixture(logp: Tensor, logq: Tensor, share: float) -> Tensor:
    """Log of share p + (1 - share) q."""
    return torch.logaddexp(logp + math.log(share), logq + math.log1p(-share))


def row_loss(term: LogitTerm, spoken: StudentRows, rows: TargetRows, shape: LossOptions) -> Tensor:
    """One loss of every row, before weight and factor."""
    rest_C = spoken.rest_C[term.temperature]
    if spoken.kept_CK is None or rows.targets is None:
        return rest_C - spoken.label_C / term.temperature
    dtype = rest_C.dtype
    is_exact_CK, is_entry_CK = exact_and_entries(rows.targets)
    tempered_CK = spoken.kept_CK / term.temperature
    all_C = torch.logaddexp(_log_sum(tempered_CK, is_entry_CK), rest_C)
    if term.name == "ce":
        return all_C - spoken.label_C
    logq_CK = torch.where(is_entry_CK, tempered_CK - all_C[:, None], 0.0)
    if term.name == "renormalized":
        return _renormalized(rows.targets, logq_CK, is_exact_CK, term.temperature)
    teacher = bins(rows.targets, term.temperature, rows.vocabulary_size, dtype)
    log_bin_C = torch.logaddexp(_log_sum(tempered_CK, teacher.is_draw_CK), rest_C) - all_C
    logq_CB = torch.where(teacher.present_CB, torch.cat([logq_CK, log_bin_C[:, None]], dim=1), 0.0)
    loss_C = divergence(term.name, teacher.logp_CB, logq_CB, shape)
    if rows.tail_scale_N is None or teacher.draw_weights_CK is None:
        return loss_C
    return loss_C + rows.tail_scale_N * tail(term.name, teacher, logq_CK, logq_CB[:, -1], shape)


def tail(name: LogitName, teacher: TeacherBins, logq_CK: Tensor, log_bin_C: Tensor, shape: LossOptions) -> Tensor:
    """What forward and skew KL lose by the bin: mass of the bin * KL(teacher within it, student within it).

    = sum over the bin of p log p - sum over draws of w log m - alpha (log alpha - log m(bin)), m as in `divergence`.
    """
    assert teacher.draw_weights_CK is not None and teacher.bin_plogp_C is not None
    logm_CK, logm_C = logq_CK, log_bin_C
    if name == "skew_kl" and teacher.draw_logp_CK is not None:
        logm_CK = mixture(teacher.draw_logp_CK, logq_CK, shape.skew)
        logm_C = mixture(teacher.log_bin_C, log_bin_C, shape.skew)
    elif name != "forward_kl":
        return torch.zeros_like(log_bin_C)
    drawn_C = (teacher.draw_weights_CK * logm_CK).sum(dim=1)
    lost_C = teacher.bin_plogp_C - drawn_C - teacher.log_bin_C.exp() * (teacher.log_bin_C - logm_C)
    return torch.where(teacher.is_draw_CK.any(dim=1), lost_C, 0.0)


def tail_scales(targets: Targets, shape: LossOptions, sequence_N: Tensor | None) -> Tensor | None:
    """What a row's tail term is multiplied with: the tail weight; above 1 divided by the sequence's mean tail mass."""
    if not shape.tail_weight or targets.state_NH is not None or targets.log_tail_N is None:
        return None
    is_exact_NK, is_entry_NK = exact_and_entries(targets)
    mass_N = torch.where(is_entry_NK & ~is_exact_NK, targets.weights_NK.float(), 0.0).sum(dim=1)
    scales_N = torch.full_like(mass_N, shape.tail_weight)
    if shape.tail_weight <= 1:
        return scales_N
    assert sequence_N is not None, "a tail weight above 1 needs the sequence of each row"
    _, number_N = torch.unique(sequence_N, return_inverse=True)
    zeros_S = torch.zeros_like(mass_N)
    sums_S = zeros_S.index_add(0, number_N, mass_N)
    mean_N = (sums_S / zeros_S.index_add(0, number_N, torch.ones_like(mass_N)).clamp(min=1))[number_N]
    return torch.where(mean_N > 0, scales_N / mean_N, 0.0)


def clamped(losses: Sequence[Tensor], shape: LossOptions) -> list[Tensor]:
    """Raw losses up to the largest that counts; what is no finite number stays, for the guard to find."""
    most = shape.clamp_loss
    return [one if most is None else torch.where(one.isfinite(), one.clamp(max=most), one) for one in losses]


def weighed(losses: Sequence[Tensor], weights_TC: Tensor) -> Tensor:
    """The sum over terms and rows; where a weight is 0 nothing enters, whatever it is."""
    parts = [torch.where(w_C != 0, w_C * x_C, 0.0).sum() for w_C, x_C in zip(weights_TC, losses, strict=True)]
    return torch.stack(parts).sum()


def _renormalized(targets: Targets, logq_CK: Tensor, is_exact_CK: Tensor, temperature: float) -> Tensor:
    """sum t log(t/q) over exact ids, t = p^(1/T) / their sum, q the whole softmax: biased, there to compare with."""
    own_CK = torch.where(is_exact_CK, targets.logprobs_NK.to(logq_CK.dtype) / temperature, NOTHING)
    logt_CK = torch.where(is_exact_CK, own_CK.log_softmax(dim=1), 0.0)
    logq_CK = torch.where(is_exact_CK, logq_CK, 0.0)
    return (torch.where(is_exact_CK, logt_CK.exp(), 0.0) * (logt_CK - logq_CK)).sum(dim=1)


def _log_sum(values_CK: Tensor, chosen_CK: Tensor) -> Tensor:
    """Log of the sum of exponentials of the chosen ones."""
    return torch.where(chosen_CK, values_CK, NOTHING).logsumexp(dim=1)
