"""The small models that stand for teachers: their targets are worth storing, and depend on what was read."""

from pathlib import Path

import pytest
import torch
import transformers

from support.models import FAMILIES, tiny_model


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_small_model_is_unsure_and_listens_to_its_context(family: str, tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model(family, tmp_path))
    ids = torch.randint(3, 512, (2, 24), generator=torch.Generator().manual_seed(1))
    other = ids.clone()
    other[:, 10] = 7
    with torch.inference_mode():
        first, second = (model(x, use_cache=False).logits.double().log_softmax(-1) for x in (ids, other))
    assert -(first.exp() * first).sum(-1).mean() > 1
    assert torch.equal(first[:, :10], second[:, :10])
    assert (first - second)[:, 11:].abs().amax(-1).mean() > 0.1
