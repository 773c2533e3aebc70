"""Output head and logit losses in one pass over chunks of rows, with one chunk of logits in memory.

In: states, the head's weights, a `FusedRequest`. Out: raw sums, statistics of rows, and the gradients. These are summed
with weights relative to the largest and scaled in the backward pass (`attached`), so that none underflows.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kdpipe.pipeline.losses.divergences import TargetRows
from kdpipe.pipeline.losses.row_statistics import RowStatistics, row_statistics
from kdpipe.pipeline.losses.workspace import Buffers
from kdpipe.pipeline.models.head import HALVES, Head

# float16 ends at 65,504 and below 6e-8: the largest gradient of a chunk is scaled to near the upper end.
HALF_PEAK = 2.0**13


# Turns logits into losses, and into their gradient in place.
Work = Callable[[Tensor, TargetRows, Tensor], list[Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedRequest:
    """Some rows, their weights in the gradient of each term, and which of them each term is taken over."""

    rows: TargetRows
    chosen_TN: Tensor
    weights_TN: Tensor
    n_chunk: int
    watch: bool


@dataclass(slots=True, kw_only=True)
class FusedResult:
    """Raw sums over selected rows, each chunk's rows and statistics if watched, and the requested gradients in float32
    or wider."""

    sums_T: Tensor
    rows_TC: list[Tensor] = field(default_factory=list)
    watched: list[RowStatistics] = field(default_factory=list)
    states_NH: Tensor | None = None
    weight_VH: Tensor | None = None
    bias_V: Tensor | None = None


class FusedPass:
    """One pass over the rows of a call; `wanted`: whether states, weight and bias need gradients."""

    def __init__(
        self, head: Head, buffers: Buffers, wanted: tuple[bool, bool, bool], clamp: float | None = None
    ) -> None:
        self._head, self._buffers, self._wanted, self._clamp = head, buffers, wanted, clamp
        whole: Any = head.module.weight
        self._product = product_type(whole)
        self._wide = torch.float64 if self._product is torch.float64 else torch.float32
        self._whole: Tensor = whole.detach()
        self._weight_VH = self._whole[: head.vocabulary_size].to(self._product)
        self._bias_V = None if head.bias_V is None else head.bias_V.detach().to(self._wide)

    def run(self, states_NH: Tensor, call: FusedRequest, work: Work | None) -> FusedResult:
        """Run all chunks; without `work` only statistics are computed."""
        result = self._begin(states_NH, len(call.chosen_TN))
        with torch.no_grad(), torch.autocast(states_NH.device.type, enabled=False):
            for begin in range(0, len(states_NH), call.n_chunk):
                piece = slice(begin, min(begin + call.n_chunk, len(states_NH)))
                self._chunk(states_NH[piece], piece, call, work, result)
        return result

    def _begin(self, states_NH: Tensor, n_terms: int) -> FusedResult:
        result = FusedResult(sums_T=states_NH.new_zeros(n_terms, dtype=sum_type(states_NH)))
        for_states, for_weight, for_bias = self._wanted
        if for_states:
            result.states_NH = states_NH.new_empty(states_NH.shape, dtype=self._wide)
        if for_weight:
            # Zeros only where no chunk will write, so that each page is touched once.
            is_empty = not len(states_NH)
            result.weight_VH = self._whole.new_empty(self._whole.shape, dtype=self._wide)
            result.weight_VH[0 if is_empty else self._head.vocabulary_size :] = 0
        if for_bias:
            bias: Any = self._head.module.bias
            result.bias_V = bias.new_zeros(bias.shape, dtype=self._wide)
        return result

    def _chunk(
        self, states_CH: Tensor, piece: slice, call: FusedRequest, work: Work | None, result: FusedResult
    ) -> None:
        rows = call.rows.take(piece)
        states_CH = states_CH.detach().to(self._product)
        logits_CV = self._logits(states_CH)
        if call.watch:
            spare_CV = self._buffers.take("spare", logits_CV)
            result.watched.append(row_statistics(logits_CV, rows.labels_N, spare_CV))
        if work is None:
            return
        outputs_CV = None
        if any(self._wanted) and (self._head.soft_cap is not None or self._clamp is not None):
            outputs_CV = self._buffers.take("outputs", logits_CV).copy_(logits_CV)
        losses = work(logits_CV, rows, call.weights_TN[:, piece])
        chosen = [torch.where(mask_C, x_C, 0.0) for mask_C, x_C in zip(call.chosen_TN[:, piece], losses, strict=True)]
        rows_TC = torch.stack(chosen)
        result.sums_T += rows_TC.sum(dim=1, dtype=result.sums_T.dtype)
        if call.watch:
            result.rows_TC.append(rows_TC.float())
        if any(self._wanted):
            self._cap_gradient(logits_CV, outputs_CV)
            self._add_gradients(logits_CV, states_CH, piece, result)

    def _logits(self, states_CH: Tensor) -> Tensor:
        shape, device = (len(states_CH), self._head.vocabulary_size), states_CH.device
        logits_CV = self._buffers.make("logits", shape, self._wide, device)
        self._multiply(states_CH, self._weight_VH.t(), logits_CV)
        if self._bias_V is not None:
            logits_CV.add_(self._bias_V)
        if self._head.scale != 1.0:
            logits_CV.mul_(self._head.scale)
        if self._head.soft_cap is not None:
            logits_CV.div_(self._head.soft_cap).tanh_().mul_(self._head.soft_cap)
        return logits_CV if self._clamp is None else logits_CV.clamp_(-self._clamp, self._clamp)

    def _cap_gradient(self, slope_CV: Tensor, outputs_CV: Tensor | None) -> None:
        """The gradient through clamp, cap and scale: the derivative of z = c tanh(u / c) is 1 - (z / c)^2."""
        if outputs_CV is not None and self._clamp is not None:
            slope_CV.masked_fill_(outputs_CV.abs() >= self._clamp, 0.0)
        if outputs_CV is not None and self._head.soft_cap is not None:
            torch.addcmul(slope_CV, outputs_CV.square_(), slope_CV, value=-1 / self._head.soft_cap**2, out=slope_CV)
        if self._head.scale != 1.0:
            slope_CV.mul_(self._head.scale)

    def _add_gradients(self, slope_CV: Tensor, states_CH: Tensor, piece: slice, result: FusedResult) -> None:
        if result.bias_V is not None:
            result.bias_V[: self._head.vocabulary_size] += slope_CV.sum(dim=0)
        lift = None
        if self._product is torch.float16:
            low, high = slope_CV.aminmax()
            lift = HALF_PEAK / torch.maximum(-low, high).clamp(min=torch.finfo(torch.float32).tiny * HALF_PEAK)
            slope_CV.mul_(lift)
        if self._product is not self._wide:
            slope_CV = self._buffers.take("halves", slope_CV, self._product).copy_(slope_CV)
        if result.states_NH is not None:
            self._multiply(slope_CV, self._weight_VH, result.states_NH[piece], lift)
        if result.weight_VH is not None:
            sums_VH = result.weight_VH[: self._head.vocabulary_size]
            self._multiply(slope_CV.t(), states_CH, sums_VH, lift, add=piece.start > 0)

    def _multiply(
        self, left: Tensor, right: Tensor, into: Tensor, lift: Tensor | None = None, *, add: bool = False
    ) -> None:
        """A product in the data type of the weights, summed in the wide one."""
        if self._product is self._wide:
            if add:
                into.addmm_(left, right)
            else:
                torch.mm(left, right, out=into)
            return
        if multiplies_wide(left.device, self._product):
            product = torch.mm(left, right, out_dtype=self._wide)
        else:
            product = torch.mm(left, right)
        if lift is not None:
            product /= lift
        if add:
            into.add_(product)
        else:
            into.copy_(product)


class _PrecomputedGradients(torch.autograd.Function):
    """A number whose gradients are already computed."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, result: FusedResult, scale: float, *inputs: Tensor | None) -> Tensor:
        ctx.result, ctx.scale = result, scale
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in inputs]
        return total.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Any:
        """Scale the gradients in place, which works once."""
        result, ctx.result = ctx.result, None
        if result is None:
            raise RuntimeError("backward was called twice: the output head's gradient exists once per forward pass")
        gradients = (result.states_NH, result.weight_VH, result.bias_V)
        factor = slope * ctx.scale
        scaled = [
            None if gradient is None else gradient.mul_(factor).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return (None, None, None, *scaled)


def attached(total: Tensor, result: FusedResult, scale: float, head: Head, states_NH: Tensor) -> Tensor:
    """The loss as a tensor whose backward pass returns the pass's gradients, times a scale."""
    module: Any = head.module
    attach: Any = _PrecomputedGradients.apply
    loss: Tensor = attach(total, result, scale, states_NH, module.weight, module.bias)
    return loss


def product_type(weight_VH: Tensor) -> torch.dtype:
    """The data type of the head's products: autocast's where on, else the weights'; float32 where 16 bits lose digits.

    bfloat16 has the range to be summed on a CPU; other 16-bit products need float32 results.
    """
    kind = weight_VH.device.type
    dtype = weight_VH.dtype
    if dtype is not torch.float64 and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    if dtype not in HALVES or (kind == "cpu" and dtype is torch.bfloat16) or multiplies_wide(weight_VH.device, dtype):
        return dtype
    return torch.float32


def sum_type(like: Tensor) -> torch.dtype:
    """The widest data type in which a device can sum."""
    return torch.float32 if like.device.type == "mps" else torch.float64


@cache
def multiplies_wide(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a device computes float32 products of 16-bit matrices."""
    with torch.autocast(device.type, enabled=False), torch.inference_mode():
        few = torch.ones(8, 8, device=device, dtype=dtype)
        try:
            torch.mm(few, few, out_dtype=torch.float32)
        except RuntimeError:
            return False
    return True
