"""The output head: what a config means by its numbers is found out, and never guessed."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdpipe.pipeline.models.head import Head, find_head

ROWS, IDS, WIDTH = 40, 33, 16


def linear(bias: bool = False) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(WIDTH, ROWS, bias=bias).requires_grad_(False)


class Model(nn.Module):
    """As much of a model as a head is found by."""

    def __init__(self, head: nn.Module | None) -> None:
        super().__init__()
        self.head = head

    def get_output_embeddings(self) -> nn.Module | None:
        return self.head


def states(n: int = 9) -> Tensor:
    return 3 * torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(1))


def found(module: nn.Linear, logits: Tensor, **config: Any) -> Head | None:
    return find_head(Model(module), SimpleNamespace(**config), states(), logits, IDS)


@pytest.mark.parametrize(
    ("config", "scale", "cap"),
    [
        ({}, 1.0, None),
        ({"logit_scale": 0.25}, 0.25, None),
        ({"logits_scaling": 8.0}, 0.125, None),
        ({"logits_scaling": 8.0}, 8.0, None),
        ({"lm_head_multiplier": 0.5}, 0.5, None),
        ({"final_logit_softcapping": 2.0}, 1.0, 2.0),
        ({"final_logit_softcapping": None, "logit_scale": None}, 1.0, None),
        ({"logit_scale": 3.0, "final_logit_softcapping": 2.0}, 3.0, 2.0),
        ({"logit_scale": 3.0, "final_logit_softcapping": 2.0}, 1.0, None),
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_numbers_of_a_config_are_used_as_the_model_uses_them(
    config: dict[str, float | None], scale: float, cap: float | None, bias: bool
) -> None:
    module = linear(bias)
    logits = scale * module(states())
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    head = found(module, logits, **config)
    assert head is not None and head.is_plain
    assert (head.scale, head.soft_cap) == (scale, cap)
    torch.testing.assert_close(head.logits(states()), logits[:, :IDS])
    assert head.weight_VH.shape == (IDS, WIDTH)
    assert (head.bias_V is None) != bias


@pytest.mark.parametrize("config", [{"final_logit_softcapping": 30.0}, {"logit_scale": 1.02}])
def test_near_ties_of_half_precision_are_decided_by_the_nearest(config: dict[str, float]) -> None:
    """A number in the config that the model does not use."""
    module, half = linear().to(torch.bfloat16), states().to(torch.bfloat16)
    head = find_head(Model(module), SimpleNamespace(**config), half, module(half), IDS)
    assert head is not None
    assert (head.scale, head.soft_cap) == (1.0, None)


def test_a_head_with_another_formula_is_not_used() -> None:
    module = linear()
    assert found(module, 2 * module(states()), logit_scale=0.25) is None
    assert found(module, module(states()) + 0.5) is None
    assert found(module, torch.full((9, ROWS), torch.nan)) is None


@pytest.mark.parametrize("model", [nn.Linear(2, 2), Model(None), Model(nn.Identity())])
def test_a_model_without_a_projection_has_no_head(model: nn.Module) -> None:
    assert find_head(model, SimpleNamespace(), states(), torch.zeros(9, ROWS), IDS) is None


def test_a_projection_that_is_no_matrix_in_memory_is_called() -> None:
    class Packed(nn.Linear):
        """Like a quantized layer, whose packed weights are not a matrix."""

    torch.manual_seed(0)
    module = Packed(WIDTH, ROWS).requires_grad_(False)
    head = found(module, module(states()))
    assert head is not None and not head.is_plain
    torch.testing.assert_close(head.logits(states()), module(states())[:, :IDS])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_of_half_precision_are_widened_before_anything_is_done_to_them(dtype: torch.dtype) -> None:
    module = linear().to(dtype)
    head = Head(module=module, vocabulary_size=IDS, scale=0.3, soft_cap=5.0)
    logits = head.logits(states().to(dtype))
    assert logits.dtype == torch.float32
    plain = module(states().to(dtype))[:, :IDS].float()
    torch.testing.assert_close(logits, 5.0 * torch.tanh(0.3 * plain / 5.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cpu_makes_no_wide_products(dtype: torch.dtype) -> None:
    module = linear().to(dtype)
    head = find_head(Model(module), SimpleNamespace(), states().to(dtype), module(states().to(dtype)), IDS)
    assert head is not None and not head.is_wide


@pytest.mark.parametrize("bias", [False, True])
def test_a_buffer_of_the_models_type_is_filled_and_another_left_alone(bias: bool) -> None:
    head = Head(module=linear(bias), vocabulary_size=IDS, scale=2.0)
    buffer, other = torch.full((9, IDS), 7.0), torch.full((9, IDS), 7.0, dtype=torch.float64)
    assert head.logits(states(), buffer).data_ptr() == buffer.data_ptr()
    torch.testing.assert_close(buffer, head.logits(states()))
    torch.testing.assert_close(head.logits(states(), other), buffer)
    assert (other == 7.0).all()
