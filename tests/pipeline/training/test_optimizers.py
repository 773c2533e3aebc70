"""One optimizer: against AdamW and Muon written out, who decays, whose rate is whose, and moments to the bit."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdpipe.pipeline.training.optimizer_defaults import fill_defaults
from kdpipe.pipeline.training.optimizers import (
    Trainable,
    learning_rates,
    make_optimizer,
    moments,
    reset_moments,
    restore_moments,
    set_learning_rate,
)
from kdpipe.schemas.choices import Role
from kdpipe.schemas.errors import KdpipeError
from kdpipe.schemas.train_settings import OptimizerSettings

ROLES: dict[str, Role] = {
    "embed": "tables", "head": "tables", "up": "matrices", "down": "matrices", "norm": "vectors", "bias": "vectors",
}  # fmt: skip
RATES = {"matrices": 0.05, "tables": 0.04, "vectors": 0.01, "maps": 0.02, "router": 0.03}


def trainable_of(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Trainable:
    torch.manual_seed(0)
    shapes = {"embed": (12, 6), "up": (8, 6), "down": (6, 8), "norm": (6,), "bias": (8,), "head": (12, 6)}
    student = {name: nn.Parameter(torch.randn(shape).to(device, dtype)) for name, shape in shapes.items()}
    maps = {"0.map": nn.Parameter(torch.randn(4, 6).to(device))}
    router = {"mix": nn.Parameter(torch.randn(3, 2).to(device))}
    return Trainable(student=student, roles=ROLES, maps=maps, router=router)


def settings(**values: Any) -> OptimizerSettings:
    given = OptimizerSettings.model_validate({"kind": "adamw", "weight_decay": 0.1, "rates": RATES, **values})
    return fill_defaults(given, "fresh", 1_000_000)


def gradients(trainable: Trainable, step: int) -> dict[str, Tensor]:
    torch.manual_seed(100 + step)
    return {name: torch.randn(p.shape).to(p.device, p.dtype) for name, p in trainable.named.items()}


def run(optimizer: torch.optim.Optimizer, trainable: Trainable, steps: range) -> None:
    for step in steps:
        set_learning_rate(optimizer, 1 / (1 + step))
        for name, gradient in gradients(trainable, step).items():
            trainable.named[name].grad = gradient
        optimizer.step()


def adamw_twin(value: Tensor, grads: list[Tensor], lr: float, decay: float) -> Tensor:
    p, m, v = value.double(), torch.zeros_like(value).double(), torch.zeros_like(value).double()
    for t, gradient in enumerate(grads):
        g, rate = gradient.double(), lr / (1 + t)
        p = p - rate * decay * p
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        p = p - rate * (m / (1 - 0.9 ** (t + 1))) / ((v / (1 - 0.95 ** (t + 1))).sqrt() + 1e-8)
    return p


def muon_twin(value: Tensor, grads: list[Tensor], lr: float, decay: float) -> Tensor:
    """With the singular vectors themselves, where Muon comes near them by five rounds in bfloat16."""
    p, m = value.double(), torch.zeros_like(value).double()
    for t, gradient in enumerate(grads):
        m = 0.95 * m + 0.05 * gradient.double()
        u, _, vh = torch.linalg.svd(0.05 * gradient.double() + 0.95 * m, full_matrices=False)
        rate = lr / (1 + t)
        p = p - rate * decay * p - rate * 0.2 * max(value.shape) ** 0.5 * (u @ vh)
    return p


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_steps_are_those_of_the_formulas_with_a_rate_and_decay_for_each_group(kind: str) -> None:
    trainable = trainable_of()
    before = {name: parameter.detach().clone() for name, parameter in trainable.named.items()}
    run(make_optimizer(settings(kind=kind, decays={"tables": 0.07}), trainable), trainable, range(3))
    for name, parameter in trainable.named.items():
        grads = [gradients(trainable, step)[name] for step in range(3)]
        part, _, short = name.partition(".")
        group = ROLES.get(short, part)
        lr, decay = RATES[group], {"vectors": 0.0, "tables": 0.07}.get(group, 0.1)
        if kind == "muon" and name in ("student.up", "student.down"):
            expected = muon_twin(before[name], grads, 0.05, 0.1)
            moved, wanted = (parameter - before[name]).double(), expected - before[name]
            # Five rounds leave singular values between 0.7 and 1.2 (Jordan 2024).
            assert torch.cosine_similarity(moved.flatten(), wanted.flatten(), 0) > 0.97
            assert 0.7 < moved.norm() / wanted.norm() < 1.2
        else:
            expected = adamw_twin(before[name], grads, lr, decay)
            torch.testing.assert_close(parameter.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_rates_are_named_by_group_and_follow_the_factor(kind: str) -> None:
    optimizer = make_optimizer(settings(kind=kind), trainable_of())
    set_learning_rate(optimizer, 0.5)
    assert learning_rates(optimizer) == {name: value / 2 for name, value in RATES.items()}
    used = {group["group"]: group["optimizer"] for group in optimizer.param_groups}
    assert used.pop("matrices") == kind and set(used.values()) == {"adamw"}


on_devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


@on_devices
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_moments_are_restored_to_the_bit(kind: str, device: str) -> None:
    one, other = trainable_of(device=device), trainable_of(device=device)
    first = make_optimizer(settings(kind=kind), one)
    run(first, one, range(3))
    kept = {name: value.cpu().clone() for name, value in moments(first).items()}
    second = make_optimizer(settings(kind=kind), other)
    for name, parameter in other.named.items():
        parameter.data.copy_(one.named[name])
    restore_moments(second, kept)
    assert moments(second).keys() == kept.keys()
    assert all(torch.equal(value.cpu(), kept[name]) for name, value in moments(second).items())
    run(first, one, range(3, 6))
    run(second, other, range(3, 6))
    assert all(torch.equal(parameter, other.named[name]) for name, parameter in one.named.items())


def test_restored_moments_are_copies() -> None:
    one, other = trainable_of(), trainable_of()
    first, second = (make_optimizer(settings(), trainable) for trainable in (one, other))
    run(first, one, range(1))
    given = moments(first)
    before = {name: value.clone() for name, value in given.items()}
    restore_moments(second, given)
    run(second, other, range(1, 3))
    assert all(torch.equal(value, before[name]) for name, value in given.items())


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_reset_moments_are_those_of_a_new_optimizer(kind: str) -> None:
    trainable = trainable_of()
    optimizer = make_optimizer(settings(kind=kind), trainable)
    run(optimizer, trainable, range(3))
    reset_moments(optimizer)
    assert moments(optimizer) == {}
    other = trainable_of()
    for name, parameter in other.named.items():
        parameter.data.copy_(trainable.named[name])
    run(optimizer, trainable, range(2))
    run(make_optimizer(settings(kind=kind), other), other, range(2))
    assert all(torch.equal(parameter, other.named[name]) for name, parameter in trainable.named.items())


def test_a_scaler_unscales_and_steps_both_kinds_at_once() -> None:
    trainable = trainable_of()
    optimizer = make_optimizer(settings(kind="muon"), trainable)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.ones((), requires_grad=True))
    for name, gradient in gradients(trainable, 0).items():
        trainable.named[name].grad = 4 * gradient
    scaler.unscale_(optimizer)
    assert all(torch.equal(trainable.named[name].grad, g) for name, g in gradients(trainable, 0).items())  # type: ignore[arg-type]  # set above
    trainable.named["router.mix"].grad = torch.full((3, 2), torch.inf)
    before = {name: parameter.detach().clone() for name, parameter in trainable.named.items()}
    scaler.update()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0
    assert all(torch.equal(parameter, before[name]) for name, parameter in trainable.named.items())


def test_adamw_is_fused_where_torch_supports_it() -> None:
    assert all(group["fused"] for group in make_optimizer(settings(), trainable_of()).param_groups)


def test_frozen_parameters_are_left_out_and_all_frozen_is_refused() -> None:
    trainable = trainable_of()
    trainable.student["head"].requires_grad_(False)
    optimizer = make_optimizer(settings(), trainable)
    run(optimizer, trainable, range(1))
    assert not [name for name in moments(optimizer) if "head" in name]
    for parameter in trainable.named.values():
        parameter.requires_grad_(False)
    with pytest.raises(KdpipeError, match="no trainable parameters"):
        make_optimizer(settings(), trainable)


def test_small_gradients_of_float16_weights_do_not_divide_by_zero() -> None:
    trainable = trainable_of(dtype=torch.float16)
    optimizer = make_optimizer(settings(), Trainable(student=trainable.student, roles=ROLES))
    for parameter in trainable.student.values():
        parameter.grad = torch.full_like(parameter, 1e-5)
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in trainable.student.values())


def test_moments_of_other_parameters_or_shapes_are_refused() -> None:
    optimizer = make_optimizer(settings(), trainable_of())
    with pytest.raises(KdpipeError, match=r"student\.other"):
        restore_moments(optimizer, {"student.other:exp_avg": torch.zeros(6)})
    with pytest.raises(KdpipeError, match=r"student\.norm has shape \[7\], expected \[6\]"):
        restore_moments(optimizer, {"student.norm:exp_avg": torch.zeros(7)})
