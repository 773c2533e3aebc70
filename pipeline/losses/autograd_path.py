"""The same losses where a head is no plain projection: its own logits by chunks, made again in the backward.

In: states, anything that turns states into logits, a `FusedRequest`. Out: the loss, raw sums, statistics of rows.
Autograd goes through all of it, and checkpoints see to it that one chunk of logits is alive.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kdpipe.pipeline.losses.dense_chunk import TeacherHead, whole_losses
from kdpipe.pipeline.losses.divergences import StudentRows, TargetRows, clamped, row_loss, weighed
from kdpipe.pipeline.losses.fused import FusedRequest, FusedResult, sum_type
from kdpipe.pipeline.losses.row_statistics import row_statistics
from kdpipe.pipeline.losses.teacher_bins import NOTHING
from kdpipe.pipeline.losses.terms import LogitTerm, LossOptions
from kdpipe.pipeline.models.head import Head

Speak = Callable[[Tensor], Tensor]


def speak(head: Head) -> Speak:
    """A head as a function that autograd can follow."""

    def logits(states_CH: Tensor) -> Tensor:
        said_CV: Tensor = head.module(states_CH)[:, : head.vocabulary_size]
        said_CV = said_CV.float() if said_CV.dtype.itemsize < 4 else said_CV
        said_CV = said_CV * head.scale
        return said_CV if head.soft_cap is None else torch.tanh(said_CV / head.soft_cap) * head.soft_cap

    return logits


class Fallback:
    """One pass over the rows of a call by autograd."""

    def __init__(
        self, head: Speak, terms: Sequence[LogitTerm], shape: LossOptions, teacher: TeacherHead | None
    ) -> None:
        self._head, self._terms, self._shape, self._teacher = head, tuple(terms), shape, teacher

    def run(self, states_NH: Tensor, call: FusedRequest) -> tuple[Tensor, FusedResult]:
        """The sum over terms and rows that autograd follows, by the weights of the call, and what else was made."""
        made = FusedResult(sums_T=states_NH.new_zeros(len(self._terms), dtype=sum_type(states_NH)))
        # Of no rows, so that a batch without any can be differentiated too.
        total = states_NH[:0].float().sum()
        for begin in range(0, len(states_NH), call.n_chunk):
            piece = slice(begin, min(begin + call.n_chunk, len(states_NH)))
            rows, states_CH = call.rows.take(piece), states_NH[piece]
            if call.watch:
                self._watch(states_CH, rows, made)
            if not self._terms:
                continue
            given = (states_CH, rows, call.weights_TN[:, piece], call.chosen_TN[:, piece])
            if torch.is_grad_enabled():
                part, rows_TC = checkpoint(self._chunk, *given, use_reentrant=False)
            else:
                part, rows_TC = self._chunk(*given)
            total = total + part
            made.sums_T += rows_TC.sum(dim=1, dtype=made.sums_T.dtype)
            if call.watch:
                made.rows_TC.append(rows_TC.float())
        return total, made

    def _watch(self, states_CH: Tensor, rows: TargetRows, made: FusedResult) -> None:
        with torch.no_grad():
            logits_CV = self._said(states_CH)
            made.watched.append(row_statistics(logits_CV, rows.labels_N, torch.empty_like(logits_CV)))

    def _said(self, states_CH: Tensor) -> Tensor:
        logits_CV = self._head(states_CH)
        logits_CV = logits_CV.float() if logits_CV.dtype.itemsize < 4 else logits_CV
        most = self._shape.clamp_logits
        return logits_CV if most is None else logits_CV.clamp(-most, most)

    def _chunk(
        self, states_CH: Tensor, rows: TargetRows, weights_TC: Tensor, chosen_TC: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits_CV = self._said(states_CH)
        with torch.autocast(states_CH.device.type, enabled=False):
            if rows.targets is not None and rows.targets.state_NH is not None and self._teacher is not None:
                losses = whole_losses(self._terms, logits_CV, rows, self._shape, self._teacher)
            else:
                spoken = self._spoken(logits_CV, rows)
                losses = clamped([row_loss(term, spoken, rows, self._shape) for term in self._terms], self._shape)
            chosen = [torch.where(mask_C, x_C, 0.0) for mask_C, x_C in zip(chosen_TC, losses, strict=True)]
            return weighed(losses, weights_TC), torch.stack(chosen).detach()

    def _spoken(self, logits_CV: Tensor, rows: TargetRows) -> StudentRows:
        """Logits at kept ids and at the label, and the log-sum-exp of the rest."""
        label_C = logits_CV.gather(1, rows.labels_N.long()[:, None]).squeeze(1)
        kept_CK, rest_CV = None, logits_CV
        if rows.targets is not None and any(term.name != "ce" for term in self._terms):
            ids_CK = rows.targets.ids_NK.long()
            kept_CK = logits_CV.gather(1, ids_CK)
            rest_CV = logits_CV.scatter(1, ids_CK, NOTHING)
        rest_C = {t: (rest_CV / t).logsumexp(dim=1) for t in {term.temperature for term in self._terms}}
        return StudentRows(label_C=label_C, rest_C=rest_C, kept_CK=kept_CK)
