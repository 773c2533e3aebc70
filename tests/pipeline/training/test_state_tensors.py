"""Parameters, buffers, random generators and the loss scale are restored to the bit."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from kdpipe.pipeline.training.state_tensors import (
    model_tensors,
    random_tensors,
    restore_model,
    restore_random,
    restore_scaler,
    scaler_state,
)
from kdpipe.schemas.checkpoint import ScalerState
from kdpipe.schemas.errors import KdpipeError


class Model(nn.Module):
    """A frozen part, a tied one, a buffer that is saved and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.norm = nn.BatchNorm1d(3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("angles", torch.ones(2), persistent=False)


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in tensors.items()}


def test_trainable_parameters_and_saved_buffers_are_stored_once() -> None:
    assert model_tensors(Model()).keys() == {
        "embed.weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked",
    }  # fmt: skip


def test_a_model_is_restored_to_the_bit_and_stays_tied() -> None:
    model = Model()
    kept = copies(model_tensors(model))
    with torch.no_grad():
        model.embed.weight.mul_(3)
        model_tensors(model)["norm.num_batches_tracked"].add_(4)
    assert not torch.equal(model_tensors(model)["embed.weight"], kept["embed.weight"])
    restore_model(model, kept)
    assert all(torch.equal(value, kept[name]) for name, value in model_tensors(model).items())
    assert model.head.weight is model.embed.weight


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("norm.bias"), r"norm\.bias is missing in the checkpoint"),
        (lambda t: t.update(other=torch.ones(1)), "other is not a trainable parameter"),
        (lambda t: t.update({"norm.bias": torch.ones(4)}), r"norm\.bias is float32 \[4\], expected float32 \[3\]"),
        (lambda t: t.update({"norm.bias": torch.ones(3).half()}), r"is float16 \[3\], expected float32 \[3\]"),
    ],
)
def test_the_state_of_another_model_is_refused_before_anything_is_changed(change, message: str) -> None:  # type: ignore[no-untyped-def]  # a dict's own methods
    model = Model()
    before = copies(model_tensors(model))
    tensors = {name: value + 1 for name, value in before.items()}
    change(tensors)
    with pytest.raises(KdpipeError, match=message):
        restore_model(model, tensors)
    assert all(torch.equal(value, before[name]) for name, value in model_tensors(model).items())


def test_dropout_continues_where_it_was() -> None:
    device = torch.device("cpu")
    torch.manual_seed(3)
    torch.rand(5)
    kept = copies(random_tensors(device))
    first = torch.nn.functional.dropout(torch.ones(100))
    torch.rand(7)
    restore_random(kept, device)
    assert torch.equal(torch.nn.functional.dropout(torch.ones(100)), first)


@pytest.mark.gpu
def test_the_generator_of_a_gpu_continues_where_it_was() -> None:
    device = torch.device("cuda", 0)
    kept = copies(random_tensors(device))
    first = torch.rand(5, device=device)
    restore_random(kept, device)
    assert torch.equal(torch.rand(5, device=device), first)


def test_the_loss_scale_is_restored() -> None:
    assert scaler_state(None) is None
    one, other = (torch.amp.GradScaler("cpu", init_scale=scale) for scale in (8.0, 2.0))
    weight = torch.ones((), requires_grad=True)
    optimizer = torch.optim.SGD([weight])
    one.scale(weight * 1).backward()  # type: ignore[no-untyped-call]  # torch
    one.step(optimizer)
    one.update()
    state = scaler_state(one)
    assert state == ScalerState(scale=8.0, growth_tracker=1)
    restore_scaler(other, state)
    assert scaler_state(other) == state
    restore_scaler(None, state)
