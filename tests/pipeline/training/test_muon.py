"""Muon on plain matrices is torch's to the bit; on stacks it steps each matrix as if it stood alone."""

import pytest
import torch
from torch import nn

from kdpipe.pipeline.training.muon import Muon, orthogonalized


def steps(parameter: nn.Parameter, optimizer: torch.optim.Optimizer, gradients: list[torch.Tensor]) -> None:
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()


def ours(parameter: nn.Parameter) -> Muon:
    group = {"params": [("w", parameter)], "lr": 0.02, "weight_decay": 0.1}
    return Muon([group], momentum=0.9)


@pytest.mark.parametrize("shape", [(8, 8), (24, 6), (6, 24), (300, 2)])
def test_on_matrices_it_equals_that_of_torch(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    gradients = [torch.randn(shape, generator=generator) for _ in range(4)]
    one, other = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    steps(one, ours(one), gradients)
    theirs = torch.optim.Muon([other], lr=0.02, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    steps(other, theirs, gradients)
    assert torch.equal(one, other)


@pytest.mark.parametrize("shape", [(3, 8, 5), (4, 5, 8)])
def test_each_matrix_of_a_stack_steps_alone(shape: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(shape, generator=generator)
    scales = torch.tensor([1e-3, 1.0, 50.0, 1e3])[: shape[0], None, None]
    gradients = [scales * torch.randn(shape, generator=generator) for _ in range(3)]
    stack = nn.Parameter(start.clone())
    steps(stack, ours(stack), gradients)
    for i in range(shape[0]):
        alone = nn.Parameter(start[i].clone())
        steps(alone, ours(alone), [gradient[i] for gradient in gradients])
        torch.testing.assert_close(stack[i], alone, rtol=0, atol=2e-3)  # bfloat16 sums in another order


def test_singular_values_come_near_one_at_any_scale() -> None:
    matrices = (
        torch.randn(2, 12, 30, generator=torch.Generator().manual_seed(2)) * torch.tensor([1e-4, 1e4])[:, None, None]
    )
    values = torch.linalg.svdvals(orthogonalized(matrices).float())
    assert values.min() > 0.6 and values.max() < 1.3


def test_a_vector_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 2"):
        ours(nn.Parameter(torch.zeros(3)))


def test_a_parameter_without_a_gradient_is_unchanged() -> None:
    parameter = nn.Parameter(torch.ones(3, 3))
    ours(parameter).step()
    assert torch.equal(parameter, torch.ones(3, 3))
