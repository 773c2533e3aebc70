"""The same losses for a head that is not a plain linear layer: logits in chunks, computed again in the backward pass.

In: states, any function from states to logits, a `FusedRequest`. Out: the loss, raw sums, statistics of rows. Autograd
differentiates everything; checkpointing keeps one chunk of logits in memory.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kdpipe.pipeline.losses.dense_chunk import TeacherHead, whole_losses
from kdpipe.pipeline.losses.divergences import StudentRows, TargetRows, clamped, row_loss, weighted_sum
from kdpipe.pipeline.losses.fused import FusedRequest, FusedResult, sum_type
from kdpipe.pipeline.losses.row_statistics import row_statistics
from kdpipe.pipeline.losses.teacher_bins import NOTHING
from kdpipe.pipeline.losses.terms import LogitTerm, LossOptions
from kdpipe.pipeline.models.head import Head

LogitsFunction = Callable[[Tensor], Tensor]


def logits_function(head: Head) -> LogitsFunction:
    """A head as a function that autograd can differentiate."""

    def logits(states_CH: Tensor) -> Tensor:
        logits_CV: Tensor = head.module(states_CH)[:, : head.vocabulary_size]
        logits_CV = logits_CV.float() if logits_CV.dtype.itemsize < 4 else logits_CV
        logits_CV = logits_CV * head.scale
        return logits_CV if head.soft_cap is None else torch.tanh(logits_CV / head.soft_cap) * head.soft_cap

    return logits


class AutogradPass:
    """One pass over the rows of a call, differentiated by autograd."""

    def __init__(
        self, head: LogitsFunction, terms: Sequence[LogitTerm], options: LossOptions, teacher: TeacherHead | None
    ) -> None:
        self._head, self._terms, self._options, self._teacher = head, tuple(terms), options, teacher

    def run(self, states_NH: Tensor, call: FusedRequest) -> tuple[Tensor, FusedResult]:
        """The weighted sum over terms and rows, which can be differentiated, and the raw sums and statistics."""
        result = FusedResult(sums_T=states_NH.new_zeros(len(self._terms), dtype=sum_type(states_NH)))
        # An empty sum, so that a batch without rows can be differentiated too.
        total = states_NH[:0].float().sum()
        for begin in range(0, len(states_NH), call.n_chunk):
            piece = slice(begin, min(begin + call.n_chunk, len(states_NH)))
            rows, states_CH = call.rows.take(piece), states_NH[piece]
            if call.watch:
                self._watch(states_CH, rows, result)
            if not self._terms:
                continue
            chunk = (states_CH, rows, call.weights_TN[:, piece], call.chosen_TN[:, piece])
            if torch.is_grad_enabled():
                part, rows_TC = checkpoint(self._chunk, *chunk, use_reentrant=False)
            else:
                part, rows_TC = self._chunk(*chunk)
            total = total + part
            result.sums_T += rows_TC.sum(dim=1, dtype=result.sums_T.dtype)
            if call.watch:
                result.rows_TC.append(rows_TC.float())
        return total, result

    def _watch(self, states_CH: Tensor, rows: TargetRows, result: FusedResult) -> None:
        with torch.no_grad():
            logits_CV = self._logits(states_CH)
            result.watched.append(row_statistics(logits_CV, rows.labels_N, torch.empty_like(logits_CV)))

    def _logits(self, states_CH: Tensor) -> Tensor:
        logits_CV = self._head(states_CH)
        logits_CV = logits_CV.float() if logits_CV.dtype.itemsize < 4 else logits_CV
        most = self._options.clamp_logits
        return logits_CV if most is None else logits_CV.clamp(-most, most)

    def _chunk(
        self, states_CH: Tensor, rows: TargetRows, weights_TC: Tensor, chosen_TC: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits_CV = self._logits(states_CH)
        with torch.autocast(states_CH.device.type, enabled=False):
            if rows.targets is not None and rows.targets.state_NH is not None and self._teacher is not None:
                losses = whole_losses(self._terms, logits_CV, rows, self._options, self._teacher)
            else:
                student = self._student_rows(logits_CV, rows)
                losses = clamped([row_loss(term, student, rows, self._options) for term in self._terms], self._options)
            chosen = [torch.where(mask_C, x_C, 0.0) for mask_C, x_C in zip(chosen_TC, losses, strict=True)]
            return weighted_sum(losses, weights_TC), torch.stack(chosen).detach()

    def _student_rows(self, logits_CV: Tensor, rows: TargetRows) -> StudentRows:
        label_C = logits_CV.gather(1, rows.labels_N.long()[:, None]).squeeze(1)
        kept_CK, rest_CV = None, logits_CV
        if rows.targets is not None and any(term.needs_targets for term in self._terms):
            ids_CK = rows.targets.ids_NK.long()
            kept_CK = logits_CV.gather(1, ids_CK)
            rest_CV = logits_CV.scatter(1, ids_CK, NOTHING)
        rest_C = {t: (rest_CV / t).logsumexp(dim=1) for t in {term.temperature for term in self._terms}}
        return StudentRows(label_C=label_C, rest_C=rest_C, kept_CK=kept_CK)
