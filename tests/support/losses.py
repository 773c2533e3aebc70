"""The losses on a small world of `loss_twins.py`, and how far they are from their twin.

In: a world, terms, targets. Out: values and gradients of `HeadLosses`; a comparison.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdpipe.pipeline.batches.micro_batch import Targets, with_tensors
from kdpipe.pipeline.losses.head_chunks import HeadLosses, HeadResult
from kdpipe.pipeline.losses.terms import LogitTerm, LossOptions
from kdpipe.pipeline.models.head import Head
from support.loss_twins import Answer, Asked, World, answer

# Small tensors are slower on several threads than on one.
torch.set_num_threads(1)
# Of the largest number of a gradient. The loss itself and weights are float32 whatever the model is, which keeps 24
# bits; halves round states, products or both.
TOLERANCE = {torch.float64: 2e-7, torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}


class Opaque(nn.Module):
    """A projection that is no nn.Linear, as quantized ones and those with an adapter are."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner
        self.weight = inner.weight

    def forward(self, states: Tensor) -> Tensor:
        return self.inner(states)


def linear(w: World, dtype: torch.dtype) -> nn.Linear:
    """The world's head as a module."""
    module = nn.Linear(w.weight_VH.shape[1], w.weight_VH.shape[0], bias=w.bias_V is not None, dtype=dtype)
    with torch.no_grad():
        module.weight.copy_(w.weight_VH)
        if w.bias_V is not None:
            module.bias.copy_(w.bias_V)
    return module


def head_of(w: World, module: nn.Module) -> Head:
    """The world's head."""
    return Head(module=module, vocabulary_size=w.vocabulary_size, scale=w.scale, soft_cap=w.soft_cap)


def terms_of(requested: list[Asked], device: str = "cpu", make_term: type[LogitTerm] = LogitTerm) -> list[LogitTerm]:
    """The same terms as the losses want them."""
    return [
        make_term(
            name=one.name,
            coefficient=one.coefficient,
            temperature=one.temperature,
            chosen_N=None if one.chosen_N is None else one.chosen_N.to(device),
        )
        for one in requested
    ]


def ours(
    w: World,
    requested: list[Asked],
    kept: Targets | None,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    loss_options: LossOptions | None = None,
    opaque: bool = False,
    chunk_rows: int = 5,
    package: Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[HeadResult, Answer]:
    """Value and gradients of the fused losses, or of the fallback."""
    module = linear(w, dtype).to(device)
    states = w.states_NH.clone().to(device, dtype).requires_grad_()
    head = head_of(w, Opaque(module) if opaque else module)
    make = HeadLosses if package is None else package["head_chunks"].HeadLosses
    make_term = LogitTerm if package is None else package["terms"].LogitTerm
    losses = make(head, loss_options or LossOptions(), options.pop("teacher", None), 4 * w.vocabulary_size * chunk_rows)
    placed = None if kept is None else with_tensors(kept, lambda one: one.to(device))
    result = losses(states, w.labels_N.to(device), placed, terms_of(requested, device, make_term), **options)
    result.total.backward()
    assert states.grad is not None and module.weight.grad is not None
    assert states.grad.dtype == dtype and module.weight.grad.dtype == dtype
    found = Answer(
        total=float(result.total.detach()),
        sums={name: float(value) for name, value in result.sums.items()},
        states_NH=states.grad.double().cpu(),
        weight_VH=module.weight.grad.double().cpu(),
        bias_V=None if module.bias is None or module.bias.grad is None else module.bias.grad.double().cpu(),
    )
    return result, found


def distance(found: Answer, due: Answer) -> float:
    """The largest deviation of values and gradients, each relative to the expected."""
    pairs = [(found.states_NH, due.states_NH), (found.weight_VH, due.weight_VH)]
    if due.bias_V is not None:
        assert found.bias_V is not None
        pairs.append((found.bias_V, due.bias_V))
    far = [float((a - b).abs().max() / b.abs().max().clamp(min=1e-3)) for a, b in pairs]
    far += [abs(found.sums[name] - value) / max(1.0, abs(value)) for name, value in due.sums.items()]
    far.append(abs(found.total - due.total) / max(1.0, abs(due.total)))
    return max(far) if all(one == one for one in far) else float("inf")


def assert_equal(w: World, requested: list[Asked], kept: Targets | None, **options: Any) -> None:
    """Compare with the twin, by the tolerance of the input type."""
    _, found = ours(w, requested, kept, **options)
    assert distance(found, answer(w, requested)) < tolerance(requested, options.get("dtype", torch.float32))


def tolerance(requested: list[Asked], dtype: torch.dtype) -> float:
    """What an input type allows."""
    if dtype is torch.float64:
        return TOLERANCE[dtype]
    if any(one.name == "total_variation" for one in requested) and dtype is torch.bfloat16:
        # Its gradient jumps where p = q, and rounded logits lie on the other side of it.
        return 0.2
    if any(one.name == "reverse_kl" and one.temperature < 1 and one.exact is not None for one in requested):
        # Below T=1 the mass of the bin is 1 less a sum of nearly 1, and this loss takes its logarithm.
        return max(TOLERANCE[dtype], 1e-2)
    return TOLERANCE[dtype]
