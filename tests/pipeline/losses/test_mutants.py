"""Planted errors of sign, row, temperature, mask, bin and tail: the comparison with the twin finds each of them."""

import pytest

from support.loss_mutants import Mutant, mutated, worst

MUTANTS = [
    Mutant(
        what="sign of the gradient",
        file="fused",
        old="factor = slope * ctx.scale",
        new="factor = -slope * ctx.scale",
    ),
    Mutant(
        what="relative weights are not undone",
        file="fused",
        old="factor = slope * ctx.scale",
        new="factor = slope * 1.0",
    ),
    Mutant(
        what="labels of the row before",
        file="sparse_chunk",
        old="rows.labels_N.long()[:, None]",
        new="rows.labels_N.long().roll(1)[:, None]",
    ),
    Mutant(
        what="targets of the row before",
        file="divergences",
        old="lambda tensor: tensor[piece]",
        new="lambda tensor: tensor.roll(1, 0)[piece]",
    ),
    Mutant(
        what="labels one id further",
        file="divergences",
        old="labels_N=self.labels_N[piece]",
        new="labels_N=(self.labels_N[piece] + 1) % self.vocabulary_size",
    ),
    Mutant(
        what="no T squared",
        file="table",
        old="return float(temperature**self.temperature_power)",
        new="return 1.0",
    ),
    Mutant(
        what="T squared for total variation",
        file="table",
        old="temperature_power=1",
        new="temperature_power=2",
    ),
    Mutant(
        what="no 1/T in the slope of the rest",
        file="sparse_chunk",
        old="slope_C / (temperature * rest.total_C)",
        new="slope_C / rest.total_C",
    ),
    Mutant(
        what="no 1/T in the powers",
        file="sparse_chunk",
        old="powers_CV.mul_(1 / temperature)",
        new="powers_CV.mul_(1.0)",
    ),
    Mutant(
        what="no mask in the gradient",
        file="head_chunks",
        old="return relative_T[:, None] * chosen_TN, chosen_TN",
        new="return relative_T[:, None] * torch.ones_like(chosen_TN), chosen_TN",
    ),
    Mutant(
        what="no mask in the sums",
        file="fused",
        old="torch.where(mask_C, x_C, 0.0)",
        new="x_C",
    ),
    Mutant(
        what="no bin",
        file="teacher_bins",
        old="has_bin_C = targets.n_exact_N < vocabulary_size",
        new="has_bin_C = targets.n_exact_N < 0",
    ),
    Mutant(
        what="sign of log_tail",
        file="teacher_bins",
        old="        return log_tail_C\n",
        new="        return -log_tail_C - 1.0\n",
    ),
    Mutant(
        what="sign of log_z",
        file="teacher_bins",
        old="logprobs_CK / temperature - log_z",
        new="logprobs_CK / temperature + log_z",
    ),
    Mutant(
        what="bin at T=1",
        file="teacher_bins",
        old="    if temperature == 1.0:\n        return log_tail_C",
        new="    if temperature > 0:\n        return log_tail_C",
    ),
    Mutant(
        what="padding counts",
        file="teacher_bins",
        old="slots_K < targets.count_N[:, None]",
        new="slots_K <= targets.count_N[:, None]",
    ),
    Mutant(
        what="a draw counts as exact",
        file="teacher_bins",
        old="return slots_K < targets.n_exact_N[:, None],",
        new="return slots_K <= targets.n_exact_N[:, None],",
    ),
    Mutant(
        what="kept ids count twice",
        file="sparse_chunk",
        old="logits_CV.scatter_(1, ids_CK, -torch.inf)",
        new="pass",
    ),
    Mutant(
        what="no slope at the label",
        file="sparse_chunk",
        old="logits_CV.scatter_add_(1, label_C1, of_label_C[:, None])",
        new="pass",
    ),
    Mutant(
        what="no slope at the kept ids",
        file="sparse_chunk",
        old="logits_CV.scatter_add_(1, ids_CK, of_kept[0])",
        new="pass",
    ),
    Mutant(
        what="the second temperature is left out",
        file="sparse_chunk",
        old="logits_CV.add_(rest.powers_CV)",
        new="pass",
    ),
    Mutant(
        what="draws are added, not taken away",
        file="divergences",
        old="teacher.bin_plogp_C - drawn_C",
        new="teacher.bin_plogp_C + drawn_C",
    ),
    Mutant(
        what="no tail",
        file="divergences",
        old="loss_C + rows.tail_scale_N * tail_C",
        new="loss_C + 0 * tail_C",
    ),
    Mutant(
        what="tail mass of the batch, not of the sequence",
        file="divergences",
        old="torch.unique(sequence_N, return_inverse=True)",
        new="torch.unique(0 * sequence_N, return_inverse=True)",
    ),
    Mutant(
        what="skew the other way round",
        file="divergences",
        old="logp + math.log(share), logq + math.log1p(-share)",
        new="logp + math.log1p(-share), logq + math.log(share)",
    ),
    Mutant(
        what="reverse for forward",
        file="divergences",
        old="return kl(logq, logp)",
        new="return kl(logp, logq)",
    ),
    Mutant(
        what="total variation without its half",
        file="divergences",
        old=".abs().sum(dim=-1) / 2",
        new=".abs().sum(dim=-1)",
    ),
    Mutant(
        what="slope of the cap",
        file="fused",
        old="value=-1 / self._head.soft_cap**2",
        new="value=1 / self._head.soft_cap**2",
    ),
    Mutant(
        what="slope of the scale",
        file="fused",
        old="            slope_CV.mul_(self._head.scale)",
        new="            slope_CV.mul_(1.0)",
    ),
    Mutant(
        what="no bin where one id is left out",
        file="head_chunks",
        old="            return self._head.vocabulary_size\n",
        new="            return self._head.vocabulary_size - 1\n",
    ),
    Mutant(
        what="only the last chunk teaches the head",
        file="fused",
        old="add=piece.start > 0",
        new="add=False",
    ),
    Mutant(
        what="the bias is trained on the first rows alone",
        file="fused",
        old="slope_CV.sum(dim=0)",
        new="slope_CV[:1].sum(dim=0)",
    ),
    Mutant(
        what="weights are not in the total",
        file="head_chunks",
        old="(coefficients_T * result.sums_T).sum()",
        new="result.sums_T.sum()",
    ),
]
pytestmark = pytest.mark.slow


def test_the_copy_without_an_error_passes() -> None:
    with mutated(None) as package:
        assert worst(package) < 1e-6


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_a_planted_error_is_found(mutant: Mutant) -> None:
    with mutated(mutant) as package:
        assert worst(package) > 1e-3
