"""`Buffers`: memory for chunks of logits, reused from chunk to chunk and call to call.

In: a name and a shape. Out: an uninitialized tensor. Fresh pages cost a CPU a tenth of the whole pass.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Buffers:
    """One flat tensor per name, data type and device, as long as the longest request."""

    def __init__(self) -> None:
        self._flat: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def take(self, name: str, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor of the shape of another; overwrites the last one of this name."""
        return self.make(name, like.shape, dtype or like.dtype, like.device)

    def make(self, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        key, size = (name, dtype, device), math.prod(shape)
        flat = self._flat.get(key)
        if flat is None or len(flat) < size:
            # A tensor created in inference mode could not be written to outside of it.
            with torch.inference_mode(False):
                flat = self._flat[key] = torch.empty(size, dtype=dtype, device=device)
        return flat[:size].view(tuple(shape))
