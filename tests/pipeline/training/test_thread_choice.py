"""What timing leaves behind in a model: nothing; how many threads follow from what is known."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdpipe.pipeline.training.schedules import make_plan
from kdpipe.pipeline.training.thread_choice import n_passes_of, unchanged
from kdpipe.schemas.train_settings import TrainSettings

CPU = torch.device("cpu")


class Remembering(nn.Module):
    """A module with everything that a forward pass may change: statistics, an attribute, a buffer that is replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.dropout = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.longest, self.seen = 0, [0]
        self.frequency: Tensor
        self.register_buffer("frequency", torch.tensor([-0.0, 1.0]), persistent=False)
        self.register_buffer("later", None)

    def forward(self, rows: Tensor) -> Tensor:
        self.longest = max(self.longest, len(rows))
        self.seen.append(len(rows))
        self.frequency = self.frequency + 1
        self.later = torch.ones(1)
        self.extra = torch.ones(1)
        return self.dropout(self.norm(self.linear(rows)))


def everything(model: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {name: value.clone() for name, value in (*model.named_parameters(), *model.named_buffers())}
    for name, module in model.named_modules():
        found |= {f"{name}.{key}": copy.copy(value) for key, value in vars(module).items() if not key.startswith("_")}
    return found


@pytest.mark.parametrize("fails", [False, True])
def test_a_timed_pass_leaves_model_and_random_generators_unchanged(fails: bool) -> None:
    model = Remembering()
    before, buffers, state = everything(model), dict(model.named_buffers()), torch.get_rng_state()

    def measured() -> None:
        with unchanged(model, CPU):
            for _ in range(3):
                model(torch.randn(5, 4)).sum().backward()
            assert model.longest == 5 and not torch.equal(torch.get_rng_state(), state)
            if fails:
                raise RuntimeError("as when memory is short")

    if fails:
        with pytest.raises(RuntimeError, match="as when"):
            measured()
    else:
        measured()
    after = everything(model)
    assert after.keys() == before.keys() and (model.longest, model.seen) == (0, [0])
    for name, value in before.items():
        same = torch.equal(value, after[name]) if isinstance(value, Tensor) else value == after[name]
        assert same, name
    # The same tensors, so that whatever else holds one of them sees the same values.
    assert all(value is dict(model.named_buffers())[name] for name, value in buffers.items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_passes_of_a_run_are_counted_by_micro_batch() -> None:
    settings = TrainSettings.model_validate({"run": {"max_steps": 10, "batch_size": 4, "accumulate": 2}})
    plan = make_plan(settings, 100)
    assert (n_passes_of(plan, 8), n_passes_of(plan, 4), n_passes_of(plan, 3)) == (10, 20, 30)
