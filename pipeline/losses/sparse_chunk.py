"""A chunk of logits against cached entries: losses of its rows, and in the same buffer the gradient to the logits.

In: logits in a buffer that may be overwritten, the rows, weights of the terms. Out: raw losses, the gradient in the
buffer. Ids without an entry enter as one log-sum-exp: autograd sees K + 2 numbers per row, the rest is a softmax.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdpipe.pipeline.losses.divergences import StudentRows, TargetRows, clamped, row_loss, weighted_sum
from kdpipe.pipeline.losses.teacher_bins import NOTHING
from kdpipe.pipeline.losses.terms import LogitTerm, LossOptions
from kdpipe.pipeline.losses.workspace import Buffers


@dataclass(frozen=True, slots=True, kw_only=True)
class TailRows:
    """All ids without an entry, at one temperature: exp((z - top) / T) in a buffer, their sum, its logarithm."""

    powers_CV: Tensor
    total_C: Tensor
    log_sum_C: Tensor


class SparseChunk:
    """Computes the chunks of one call; `slopes` False leaves the gradient out."""

    def __init__(self, terms: Sequence[LogitTerm], options: LossOptions, buffers: Buffers, *, slopes: bool) -> None:
        self._terms, self._options, self._buffers, self._slopes = tuple(terms), options, buffers, slopes
        self._temperatures = sorted({term.temperature for term in terms}, reverse=True)
        self._needs_kept = any(term.needs_targets for term in terms)

    def __call__(self, logits_CV: Tensor, rows: TargetRows, weights_TC: Tensor) -> list[Tensor]:
        """The raw losses of each term; `weights_TC` weigh each term's rows in the gradient."""
        ids_CK = rows.targets.ids_NK.long() if self._needs_kept and rows.targets is not None else None
        label_C1 = rows.labels_N.long()[:, None]
        label_C = logits_CV.gather(1, label_C1).squeeze(1)
        kept_CK = logits_CV.gather(1, ids_CK) if ids_CK is not None else None
        if ids_CK is not None:
            logits_CV.scatter_(1, ids_CK, -torch.inf)
        rests = self._tail_sums(logits_CV)
        leaves = [label_C, *(rest.log_sum_C for rest in rests.values()), *([] if kept_CK is None else [kept_CK])]
        with torch.set_grad_enabled(self._slopes):
            for leaf in leaves:
                leaf.requires_grad_(self._slopes)
            rest_C = {temperature: rest.log_sum_C for temperature, rest in rests.items()}
            student = StudentRows(label_C=label_C, rest_C=rest_C, kept_CK=kept_CK)
            losses = clamped([row_loss(term, student, rows, self._options) for term in self._terms], self._options)
            if self._slopes:
                total = weighted_sum(losses, weights_TC)
                slopes = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
        if self._slopes:
            of_label_C, of_rest, of_kept = slopes[0], slopes[1 : 1 + len(rests)], slopes[1 + len(rests) :]
            self._spread(logits_CV, rests, of_rest)
            if ids_CK is not None:
                logits_CV.scatter_add_(1, ids_CK, of_kept[0])
            logits_CV.scatter_add_(1, label_C1, of_label_C[:, None])
        return [loss_C.detach() for loss_C in losses]

    def _tail_sums(self, logits_CV: Tensor) -> Mapping[float, TailRows]:
        """Sums over the ids without an entry, relative to the largest of them so that no digits cancel."""
        top_C = logits_CV.amax(dim=1)
        # Minus infinity: every id has an entry. NaN stays, for the guard to find.
        top_C = torch.where(top_C == -torch.inf, 0.0, top_C)
        rests = {}
        for number, temperature in enumerate(self._temperatures):
            last = number == len(self._temperatures) - 1
            powers_CV = logits_CV if last else self._buffers.take(f"powers {number}", logits_CV)
            torch.sub(logits_CV, top_C[:, None], out=powers_CV)
            if temperature != 1.0:
                powers_CV.mul_(1 / temperature)
            powers_CV.exp_()
            total_C = powers_CV.sum(dim=1)
            log_sum_C = torch.where(total_C == 0, NOTHING, top_C / temperature + total_C.log())
            rests[temperature] = TailRows(powers_CV=powers_CV, total_C=total_C, log_sum_C=log_sum_C)
        return rests

    def _spread(self, logits_CV: Tensor, rests: Mapping[float, TailRows], slopes: Sequence[Tensor]) -> None:
        """Write the gradients of the log-sum-exps, softmax / T of each id, into the buffer of the logits."""
        for (temperature, rest), slope_C in zip(reversed(list(rests.items())), reversed(slopes), strict=True):
            share_C = torch.where(rest.total_C == 0, 0.0, slope_C / (temperature * rest.total_C))
            rest.powers_CV.mul_(share_C[:, None])
            if rest.powers_CV is not logits_CV:
                logits_CV.add_(rest.powers_CV)
