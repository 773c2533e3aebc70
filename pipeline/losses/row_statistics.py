"""`RowStatistics`: the student's own predictions at each row, for evaluation and for selecting positions; no gradient.

In: a chunk of logits and its labels. Out: four numbers per row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class RowStatistics:
    """At T=1 and in nats: -log q(label), the most probable id and its probability, entropy."""

    cross_entropy_N: Tensor
    argmax_N: Tensor
    confidence_N: Tensor
    entropy_N: Tensor


def row_statistics(logits_CV: Tensor, labels_C: Tensor, spare_CV: Tensor) -> RowStatistics:
    """Statistics of a chunk; the spare buffer of the same shape is overwritten."""
    log_sum_C = _log_sum(logits_CV, spare_CV)
    top_C, argmax_C = logits_CV.max(dim=1)
    label_C = logits_CV.gather(1, labels_C.long()[:, None]).squeeze(1)
    torch.sub(logits_CV, log_sum_C[:, None], out=spare_CV)
    # entr is 0 at q = 0.
    entropy_C = torch.special.entr(spare_CV.exp_()).sum(dim=1)
    return RowStatistics(
        cross_entropy_N=(log_sum_C - label_C).float(),
        argmax_N=argmax_C,
        confidence_N=(top_C - log_sum_C).exp().float(),
        entropy_N=entropy_C.float(),
    )


def joined(pieces: Sequence[RowStatistics], like: Tensor) -> RowStatistics:
    """The concatenated rows of some chunks, on the device of a tensor."""
    floats, longs = like.new_zeros(0, dtype=torch.float32), like.new_zeros(0, dtype=torch.long)
    return RowStatistics(
        cross_entropy_N=torch.cat([floats, *(piece.cross_entropy_N for piece in pieces)]),
        argmax_N=torch.cat([longs, *(piece.argmax_N for piece in pieces)]),
        confidence_N=torch.cat([floats, *(piece.confidence_N for piece in pieces)]),
        entropy_N=torch.cat([floats, *(piece.entropy_N for piece in pieces)]),
    )


def _log_sum(logits_CV: Tensor, spare_CV: Tensor) -> Tensor:
    top_C = logits_CV.amax(dim=1)
    torch.sub(logits_CV, top_C[:, None], out=spare_CV)
    return top_C + spare_CV.exp_().sum(dim=1).log()
