"""One optimizer: against AdamW and Muon written out, who decays, whose rate is whose, and moments to the bit."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdpipe.pipeline.training.optimizers import (
    Learnt,
    base_rate,
    forget,
    make_optimizer,
    moments,
    rates,
    restore_moments,
    set_rate,
)
from kdpipe.schemas.errors import KdpipeError
from kdpipe.schemas.stage_two import Optimizer


def learnt_of(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Learnt:
    torch.manual_seed(0)
    shapes = {"embed": (12, 6), "up": (8, 6), "down": (6, 8), "norm": (6,), "bias": (8,), "head": (12, 6)}
    student = {name: nn.Parameter(torch.randn(shape).to(device, dtype)) for name, shape in shapes.items()}
    maps = {"0.map": nn.Parameter(torch.randn(4, 6).to(device))}
    router = {"mix": nn.Parameter(torch.randn(3, 2).to(device))}
    return Learnt(student=student, tables={"embed", "head"}, maps=maps, router=router)


def settings(**said: Any) -> Optimizer:
    return Optimizer.model_validate({"weight_decay": 0.1, "maps_lr": 0.02, "router_lr": 0.03, **said})


def gradients(learnt: Learnt, step: int) -> dict[str, Tensor]:
    torch.manual_seed(100 + step)
    return {name: torch.randn(p.shape).to(p.device, p.dtype) for name, p in learnt.named.items()}


def run(optimizer: torch.optim.Optimizer, learnt: Learnt, steps: range) -> None:
    for step in steps:
        set_rate(optimizer, 1 / (1 + step))
        for name, gradient in gradients(learnt, step).items():
            learnt.named[name].grad = gradient
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
    learnt = learnt_of()
    before = {name: parameter.detach().clone() for name, parameter in learnt.named.items()}
    run(make_optimizer(settings(kind=kind, muon_lr=0.05), learnt, 0.01), learnt, range(3))
    for name, parameter in learnt.named.items():
        grads = [gradients(learnt, step)[name] for step in range(3)]
        lr = {"maps": 0.02, "router": 0.03}.get(name.split(".")[0], 0.01)
        if kind == "muon" and name in ("student.up", "student.down"):
            expected = muon_twin(before[name], grads, 0.05, 0.1)
            moved, wanted = (parameter - before[name]).double(), expected - before[name]
            # Five rounds leave singular values between 0.7 and 1.2 (Jordan 2024).
            assert torch.cosine_similarity(moved.flatten(), wanted.flatten(), 0) > 0.97
            assert 0.7 < moved.norm() / wanted.norm() < 1.2
        else:
            expected = adamw_twin(before[name], grads, lr, 0.1 if parameter.ndim == 2 else 0.0)
            torch.testing.assert_close(parameter.double(), expected, rtol=1e-5, atol=1e-6)


def test_rates_are_named_and_follow_the_factor() -> None:
    optimizer = make_optimizer(settings(kind="muon"), learnt_of(), 0.01)
    set_rate(optimizer, 0.5)
    assert rates(optimizer) == {"muon": 0.005, "student": 0.005, "maps": 0.01, "router": 0.015}
    plain = make_optimizer(Optimizer(), learnt_of(), 0.01)
    assert rates(plain) == {"student": 0.01, "maps": 0.01, "router": 0.01}


def test_the_rate_of_a_fresh_student_is_higher_unless_said() -> None:
    assert base_rate(Optimizer(), fresh=True) == 1e-4
    assert base_rate(Optimizer(), fresh=False) == 2e-5
    assert base_rate(Optimizer(), fresh=False, factor=0.5) == 1e-5
    assert base_rate(Optimizer(lr=3e-3), fresh=False, factor=0.5) == 3e-3


on_devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


@on_devices
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_moments_come_back_to_the_bit(kind: str, device: str) -> None:
    one, other = learnt_of(device=device), learnt_of(device=device)
    first = make_optimizer(settings(kind=kind), one, 0.01)
    run(first, one, range(3))
    kept = {name: value.cpu().clone() for name, value in moments(first).items()}
    second = make_optimizer(settings(kind=kind), other, 0.01)
    for name, parameter in other.named.items():
        parameter.data.copy_(one.named[name])
    restore_moments(second, kept)
    assert moments(second).keys() == kept.keys()
    assert all(torch.equal(value.cpu(), kept[name]) for name, value in moments(second).items())
    run(first, one, range(3, 6))
    run(second, other, range(3, 6))
    assert all(torch.equal(parameter, other.named[name]) for name, parameter in one.named.items())


def test_moments_that_were_given_are_not_the_ones_that_are_stepped_on() -> None:
    one, other = learnt_of(), learnt_of()
    first, second = (make_optimizer(settings(), learnt, 0.01) for learnt in (one, other))
    run(first, one, range(1))
    given = moments(first)
    before = {name: value.clone() for name, value in given.items()}
    restore_moments(second, given)
    run(second, other, range(1, 3))
    assert all(torch.equal(value, before[name]) for name, value in given.items())


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_forgotten_moments_are_those_of_a_new_optimizer(kind: str) -> None:
    learnt = learnt_of()
    optimizer = make_optimizer(settings(kind=kind), learnt, 0.01)
    run(optimizer, learnt, range(3))
    forget(optimizer)
    assert moments(optimizer) == {}
    other = learnt_of()
    for name, parameter in other.named.items():
        parameter.data.copy_(learnt.named[name])
    run(optimizer, learnt, range(2))
    run(make_optimizer(settings(kind=kind), other, 0.01), other, range(2))
    assert all(torch.equal(parameter, other.named[name]) for name, parameter in learnt.named.items())


def test_a_scaler_unscales_and_steps_both_kinds_at_once() -> None:
    learnt = learnt_of()
    optimizer = make_optimizer(settings(kind="muon"), learnt, 0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.ones((), requires_grad=True))
    for name, gradient in gradients(learnt, 0).items():
        learnt.named[name].grad = 4 * gradient
    scaler.unscale_(optimizer)
    assert all(torch.equal(learnt.named[name].grad, g) for name, g in gradients(learnt, 0).items())  # type: ignore[arg-type]  # set above
    learnt.named["router.mix"].grad = torch.full((3, 2), torch.inf)
    before = {name: parameter.detach().clone() for name, parameter in learnt.named.items()}
    scaler.update()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0
    assert all(torch.equal(parameter, before[name]) for name, parameter in learnt.named.items())


def test_adamw_is_one_kernel_where_torch_has_it() -> None:
    assert all(group["fused"] for group in make_optimizer(settings(), learnt_of(), 0.01).param_groups)


def test_frozen_parameters_take_no_part_and_all_frozen_is_refused() -> None:
    learnt = learnt_of()
    learnt.student["head"].requires_grad_(False)
    optimizer = make_optimizer(settings(), learnt, 0.01)
    run(optimizer, learnt, range(1))
    assert not [name for name in moments(optimizer) if "head" in name]
    for parameter in learnt.named.values():
        parameter.requires_grad_(False)
    with pytest.raises(KdpipeError, match="nothing is to be learnt: every parameter is frozen"):
        make_optimizer(settings(), learnt, 0.01)


def test_small_gradients_of_float16_weights_do_not_divide_by_nothing() -> None:
    learnt = learnt_of(dtype=torch.float16)
    optimizer = make_optimizer(settings(), Learnt(student=learnt.student), 0.01)
    for parameter in learnt.student.values():
        parameter.grad = torch.full_like(parameter, 1e-5)
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in learnt.student.values())


def test_moments_of_other_parameters_or_shapes_are_refused() -> None:
    optimizer = make_optimizer(settings(), learnt_of(), 0.01)
    with pytest.raises(KdpipeError, match=r"speaks of student\.other, which this run does not learn"):
        restore_moments(optimizer, {"student.other:exp_avg": torch.zeros(6)})
    with pytest.raises(KdpipeError, match=r"state of student\.norm has the shape \[7\], the parameter \[6\]"):
        restore_moments(optimizer, {"student.norm:exp_avg": torch.zeros(7)})
