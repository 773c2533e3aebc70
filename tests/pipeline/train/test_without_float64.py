"""A run on a device without float64, such as an Apple GPU, played by a CPU that refuses such tensors."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from kdpipe.pipeline.losses import autograd_path, fused, selection
from support.stage_two import losses, make_cache, run, settings_for

MODULES = (fused, autograd_path, selection)


class RefusesFloat64(TorchDispatchMode):
    """Raises where a tensor of float64 would be made."""

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for item in tree_flatten(result)[0]:
            if isinstance(item, torch.Tensor) and item.dtype is torch.float64:
                raise TypeError("the device has no float64")
        return result


def test_an_apple_gpu_sums_in_float32() -> None:
    class OnMps:
        device = torch.device("mps")

    assert fused.sum_type(OnMps()) is torch.float32  # type: ignore[arg-type]  # only its device counts
    assert fused.sum_type(torch.zeros(1)) is torch.float64


def test_training_and_evaluation_need_no_float64_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cache(tmp_path)
    settings = settings_for(tmp_path, "wide")
    run(settings)
    # The simulated device is the CPU, whose own sums are in float64: the refusal shows that the test can fail.
    with RefusesFloat64(), pytest.raises(TypeError, match="no float64"):
        run(settings_for(tmp_path, "refused"))
    for module in MODULES:
        monkeypatch.setattr(module, "sum_type", lambda like: torch.float32)
    with RefusesFloat64():
        run(settings_for(tmp_path, "narrow"))
    wide, narrow = losses(tmp_path / "wide"), losses(tmp_path / "narrow")
    assert [step for step, _ in wide] == [step for step, _ in narrow]
    assert [loss for _, loss in narrow] == pytest.approx([loss for _, loss in wide], rel=1e-4)
