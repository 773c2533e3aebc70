"""Muon: momentum whose matrices are orthogonalized before they are applied.

In: matrices, and stacks of matrices such as the experts of a layer ([E, rows, columns]). Out: their steps. torch's own
Muon takes plain matrices only, where both agree to the bit; this one exists for the stacks.
Jordan 2024, https://kellerjordan.github.io/posts/muon; Liu et al. 2025 (Moonlight, arXiv 2502.16982) for the size.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final, final

import torch
from torch import Tensor

# Jordan 2024: a quintic whose slope at 0 is as large as five rounds allow.
COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
ROUNDS: Final = 5
SMALLEST_NORM: Final = 1e-7
# Moonlight, 2.2: the root mean square of an AdamW step, which makes one learning rate fit matrices of any shape.
ADAMW_RMS: Final = 0.2


@final
class Muon(torch.optim.Optimizer):
    """Steps of matrices: W <- (1 - lr * decay) W - lr * 0.2 * sqrt(max(rows, columns)) * orthogonalize(momentum)."""

    def __init__(self, groups: Iterable[dict[str, Any]], *, momentum: float) -> None:
        super().__init__(groups, {"momentum": momentum})
        for group in self.param_groups:
            for name, parameter in zip(group["param_names"], group["params"], strict=True):
                if parameter.ndim not in (2, 3):
                    raise ValueError(f"{name} has {parameter.ndim} dimensions, expected 2 (a matrix) or 3 (a stack)")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # torch has overloads
        """Update parameters that have a gradient."""
        assert closure is None, "gradients are computed before the step"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, lr, momentum = self.state[parameter], group["lr"], group["momentum"]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient, memory_format=torch.preserve_format)
        buffer = state["momentum_buffer"]
        buffer.lerp_(gradient, 1 - momentum)
        update = orthogonalized(gradient.lerp(buffer, momentum))
        size = ADAMW_RMS * max(parameter.shape[-2:]) ** 0.5
        parameter.mul_(1 - lr * group["weight_decay"])
        parameter.add_(update, alpha=-lr * size)


def orthogonalized(matrices: Tensor) -> Tensor:
    """Bring the singular values of each matrix near 1 (0.7 to 1.2), in bfloat16."""
    a, b, c = COEFFICIENTS
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.bfloat16()
    if is_tall:
        x = x.mT
    norms = x.norm() if x.ndim == 2 else x.norm(dim=(-2, -1), keepdim=True)
    x = x / norms.clamp(min=SMALLEST_NORM)
    multiply_add = torch.addmm if x.ndim == 2 else torch.baddbmm
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = multiply_add(x, multiply_add(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
