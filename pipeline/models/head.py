"""`Head`: states to logits by the model's own output projection, for selected rows only.

In: a model and the tokenizer's vocabulary size. Out: logits of rows; or None where a probe shows that the model does
something else after its last state.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Relative to the largest logit: differences between two computations in a data type, with room for other kernels.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
HALVES = (torch.float16, torch.bfloat16)
# Config keys of logit multipliers and divisors.
MULTIPLIERS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier_scale")
DIVISORS = ("logits_scaling",)
CAPS = ("final_logit_softcapping", "logits_soft_cap")


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """logits = cap(scale (W h + b)), of the first `vocabulary_size` ids; cap(z) = c tanh(z / c).

    `module` is called as a whole where its weights cannot be sliced (quantized or offloaded). `is_wide`: products of
    16-bit matrices have float32 results.
    """

    module: nn.Module
    vocabulary_size: int
    scale: float = 1.0
    soft_cap: float | None = None
    is_wide: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the weights are one matrix in memory."""
        return type(self.module) is nn.Linear and not self.module.weight.is_meta

    @property
    def weight_VH(self) -> Tensor:  # noqa: N802  # a shape suffix
        """The rows [V, H] of the projection, without padding."""
        whole: Any = self.module.weight
        rows: Tensor = whole[: self.vocabulary_size]
        return rows

    @property
    def bias_V(self) -> Tensor | None:  # noqa: N802  # a shape suffix
        whole: Any = getattr(self.module, "bias", None)
        return None if whole is None else whole[: self.vocabulary_size]

    def logits(self, states_RH: Tensor, into_RV: Tensor | None = None) -> Tensor:
        """Logits of some rows in float32 or wider; `into` is used if it has the model's data type."""
        logits_RV = self._product(states_RH, into_RV)
        if logits_RV.dtype in HALVES:
            logits_RV = logits_RV.float()
        if self.scale != 1.0:
            logits_RV *= self.scale
        if self.soft_cap is not None:
            logits_RV.div_(self.soft_cap).tanh_().mul_(self.soft_cap)
        return logits_RV

    def _product(self, states_RH: Tensor, into_RV: Tensor | None) -> Tensor:
        if not self.is_plain:
            projected: Tensor = self.module(states_RH)
            return projected[:, : self.vocabulary_size]
        weight, bias = self.weight_VH, self.bias_V
        states_RH = states_RH.to(weight.device)
        if self.is_wide:
            # Sums are float32 inside; rounding them to bfloat16 would tie the largest logits.
            wide_RV = torch.mm(states_RH, weight.t(), out_dtype=torch.float32)
            return wide_RV if bias is None else wide_RV.add_(bias)
        if into_RV is None or into_RV.dtype != weight.dtype:
            return nn.functional.linear(states_RH, weight, bias)
        torch.mm(states_RH, weight.t(), out=into_RV)
        return into_RV if bias is None else into_RV.add_(bias)


def find_head(model: nn.Module, config: Any, states_RH: Tensor, logits_RV: Tensor, vocabulary_size: int) -> Head | None:
    """The head that reproduces a model's logits from its last states; None without one.

    The meaning of config keys varies: all interpretations are tried and the closest to the probe is used, since in half
    precision a high cap is hard to distinguish from none.
    """
    get: Any = getattr(model, "get_output_embeddings", None)
    module = get() if get is not None else None
    if not isinstance(module, nn.Module) or not hasattr(module, "weight"):
        return None
    weight: Any = module.weight
    if type(module) is nn.Linear and weight.shape[1] != states_RH.shape[1]:
        return None  # another layer is between
    is_wide = _multiplies_wide(module)
    tolerance = TOLERANCE[states_RH.dtype] * logits_RV.float().abs().amax().item()
    best: Head | None = None
    for scale in _scales(config):
        for cap in _caps(config):
            head = Head(module=module, vocabulary_size=vocabulary_size, scale=scale, soft_cap=cap, is_wide=is_wide)
            own_RV = head.logits(states_RH)
            difference = (own_RV - logits_RV[:, :vocabulary_size].to(own_RV)).abs().amax().item()
            if difference < tolerance or (best is None and difference == tolerance):
                best, tolerance = head, difference
    return best


def _multiplies_wide(module: nn.Module) -> bool:
    """Whether the device computes float32 products of the weights; CPUs do not."""
    weight: Any = module.weight
    if type(module) is not nn.Linear or weight.is_meta or weight.dtype not in HALVES:
        return False
    try:
        torch.mm(weight[:8], weight[:8].t(), out_dtype=torch.float32)
    except RuntimeError:
        return False
    return True


def _scales(config: Any) -> Iterator[float]:
    """Candidate logit scales of a config."""
    for name in MULTIPLIERS:
        if (value := _number(config, name)) is not None and name not in DIVISORS:
            yield value
    for name in DIVISORS:
        if (value := _number(config, name)) is not None:
            yield 1 / value
            yield value
    yield 1.0


def _caps(config: Any) -> Iterator[float | None]:
    for name in CAPS:
        if (value := _number(config, name)) is not None:
            yield value
    yield None


def _number(config: Any, name: str) -> float | None:
    value = getattr(config, name, None)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None
