"""Chunks and micro-batches change nothing, and of logits never more than one chunk is alive."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kdpipe.pipeline.batches.micro_batch import Targets, with_tensors
from kdpipe.pipeline.losses.head_chunks import FEWEST_ROWS, HeadLosses
from kdpipe.pipeline.losses.terms import LossOptions
from support.loss_twins import Asked, World, largest_ids, targets, world
from support.losses import Opaque, distance, head_of, linear, ours, terms_of

ASKED = [Asked(name="ce", coefficient=0.1 / 12), Asked(name="forward_kl", coefficient=3.6 / 12, temperature=2.0)]


def kept_of(w: World) -> Targets:
    return targets(w, largest_ids(w, [4] * len(w.labels_N)), draws=3)


@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_size_of_a_chunk_does_not_matter(opaque: bool, dtype: torch.dtype) -> None:
    w = world(seed=21)
    whole, *others = (
        ours(w, ASKED, kept_of(w), dtype=dtype, opaque=opaque, chunk_rows=rows)[1] for rows in (100, 1, 5, 11)
    )
    for other in others:
        assert distance(other, whole) < (1e-6 if dtype is torch.float32 else 2e-2)


def test_a_split_into_micro_batches_does_not_matter() -> None:
    w, one = world(seed=22), torch.float32
    module = linear(w, one)
    losses = HeadLosses(head_of(w, module), LossOptions())
    found = []
    for cuts in ([(0, 12)], [(0, 1), (1, 7), (7, 12)]):
        module.weight.grad = None
        states = w.states_NH.float().requires_grad_()
        total = 0.0
        for begin, end in cuts:
            piece = slice(begin, end)
            part = with_tensors(kept_of(w), lambda tensor, piece=piece: tensor[piece])
            result = losses(states[piece], w.labels_N[piece], part, terms_of(ASKED))
            result.total.backward()
            total += float(result.total.detach())
        assert states.grad is not None and module.weight.grad is not None
        found.append((total, states.grad, module.weight.grad))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found[0][2], found[1][2], rtol=1e-5, atol=1e-7)


class Sizes(TorchDispatchMode):
    """Remembers the most numbers of any tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, torch.Tensor):
                self.most = max(self.most, one.numel())
        return out


@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_no_tensor_is_larger_than_a_chunk_of_logits(opaque: bool, grad: bool) -> None:
    w = world(seed=23, n=40, vocabulary=200, width=4, soft_cap=5.0)
    module = linear(w, torch.float32)
    states = w.states_NH.float().requires_grad_(grad)
    losses = HeadLosses(head_of(w, Opaque(module) if opaque else module), LossOptions(), chunk_bytes=4 * 200 * 5)
    kept = kept_of(w)
    with Sizes() as sizes, torch.set_grad_enabled(grad):
        total = losses(states, w.labels_N, kept, terms_of(ASKED), watch=True).total
        if grad:
            total.backward()
    assert 5 * 200 <= sizes.most <= max(5 * 200, module.weight.numel())


def test_a_chunk_has_enough_rows_for_its_products() -> None:
    w = world(seed=24, n=FEWEST_ROWS + 2, vocabulary=64, width=2)
    losses = HeadLosses(head_of(w, linear(w, torch.float32)), LossOptions())
    with Sizes() as sizes:
        losses(w.states_NH.float(), w.labels_N, None, terms_of(ASKED[:1]))
    assert sizes.most == (FEWEST_ROWS + 2) * 64
