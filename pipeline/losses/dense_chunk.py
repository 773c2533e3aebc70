"""A chunk of logits against the teacher's whole distribution, from its last state and its output head.

In: logits, the rows with their states, weights of the terms. Out: raw losses and the gradient to the logits. Every loss
is exact here, at any temperature; teacher logits are computed chunk by chunk, with one product as in
`cache/format/dense.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from kdpipe.cache.reader import Cache
from kdpipe.pipeline.losses.divergences import TargetRows, clamped, divergence, weighted_sum
from kdpipe.pipeline.losses.teacher_bins import LEAST
from kdpipe.pipeline.losses.terms import LogitTerm, LossOptions
from kdpipe.schemas.target_kinds import State

# Tensors of the size of a chunk that autograd holds here; a sparse chunk holds one.
COPIES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherHead:
    """The teacher's output head, as a cache of states stores it: logits = cap(scale (W h + b))."""

    weight_VH: Tensor
    bias_V: Tensor | None = None
    soft_cap: float | None = None
    logit_scale: float = 1.0

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> "TeacherHead":
        """A copy on a device, in the data type of the products."""
        bias_V = None if self.bias_V is None else self.bias_V.to(device, dtype)
        return replace(self, weight_VH=self.weight_VH.to(device, dtype), bias_V=bias_V)

    def logits(self, state_CH: Tensor, dtype: torch.dtype) -> Tensor:
        """Logits of some states, in float32 or wider whatever the data type of the head."""
        weight_VH = self.weight_VH.to(dtype)
        logits_CV = state_CH.to(dtype) @ weight_VH.t()
        if self.bias_V is not None:
            logits_CV += self.bias_V.to(dtype)
        logits_CV *= self.logit_scale
        return logits_CV if self.soft_cap is None else logits_CV.div_(self.soft_cap).tanh_().mul_(self.soft_cap)


def teacher_head(cache: Cache) -> TeacherHead | None:
    """The output head stored in a cache of states."""
    keep = cache.manifest.targets.keep
    if not isinstance(keep, State):
        return None
    bias = torch.from_numpy(np.array(cache.table("output_bias"))) if keep.head_bias else None
    return TeacherHead(
        weight_VH=_tensor(cache.table("output_head"), keep.head_dtype),
        bias_V=bias,
        soft_cap=keep.soft_cap,
        logit_scale=keep.logit_scale,
    )


def _tensor(table: np.ndarray[tuple[int, ...], np.dtype[np.float32]], dtype: str) -> torch.Tensor:
    """A table as a tensor of its stored type; numpy has no bfloat16, and reads it as float32."""
    tensor = torch.from_numpy(np.array(table, np.float32))
    stored: torch.dtype = getattr(torch, dtype)
    return tensor.to(stored)


class DenseChunk:
    """Computes the chunks of one call; `slopes` False leaves the gradient out."""

    def __init__(self, terms: Sequence[LogitTerm], options: LossOptions, teacher: TeacherHead, *, slopes: bool) -> None:
        self._terms, self._options, self._teacher, self._slopes = tuple(terms), options, teacher, slopes

    def __call__(self, logits_CV: Tensor, rows: TargetRows, weights_TC: Tensor) -> list[Tensor]:
        """The raw losses of each term; the gradient overwrites the logits."""
        leaf_CV = logits_CV.detach().requires_grad_(self._slopes)
        with torch.set_grad_enabled(self._slopes):
            losses = whole_losses(self._terms, leaf_CV, rows, self._options, self._teacher)
            if self._slopes:
                slope_CV = torch.autograd.grad(weighted_sum(losses, weights_TC), leaf_CV)[0]
        if self._slopes:
            logits_CV.copy_(slope_CV)
        return [loss_C.detach() for loss_C in losses]


def whole_losses(
    terms: Sequence[LogitTerm], logits_CV: Tensor, rows: TargetRows, options: LossOptions, teacher: TeacherHead
) -> list[Tensor]:
    """Every term's raw losses, from logits that autograd tracks."""
    assert rows.targets is not None and rows.targets.state_NH is not None
    with torch.no_grad():
        teacher_CV = teacher.logits(rows.targets.state_NH, logits_CV.dtype)
    losses = []
    for term in terms:
        logq_CV = (logits_CV / term.temperature).log_softmax(dim=1)
        if term.needs_targets:
            # All ids are exact here: nothing is left for a bin or to renormalize.
            logp_CV = (teacher_CV / term.temperature).log_softmax(dim=1).clamp(min=LEAST)
            losses.append(divergence(term.loss, logp_CV, logq_CV, options))
        else:
            losses.append(-logq_CV.gather(1, rows.labels_N.long()[:, None]).squeeze(1))
    return clamped(losses, options)
