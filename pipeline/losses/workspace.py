"""`Buffers`: memory for chunks of logits that is used again, chunk after chunk and call after call.

In: a name and a tensor like which it should be. Out: a tensor of that shape, its numbers anything. Fresh pages cost a
CPU a tenth of the whole pass.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Buffers:
    """One flat tensor a name, type and device, as long as the longest that was asked for."""

    def __init__(self) -> None:
        self._flat: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def take(self, name: str, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor of the shape of another; what was taken by this name before is overwritten."""
        return self.make(name, like.shape, dtype or like.dtype, like.device)

    def make(self, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor of some shape."""
        key, wanted = (name, dtype, device), math.prod(shape)
        flat = self._flat.get(key)
        if flat is None or len(flat) < wanted:
            # A buffer made while gradients are ruled out altogether could not be written to afterwards.
            with torch.inference_mode(False):
                flat = self._flat[key] = torch.empty(wanted, dtype=dtype, device=device)
        return flat[:wanted].view(tuple(shape))
