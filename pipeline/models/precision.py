"""Precision of a run: data types of weights and matrix products, and loss scaling.

In: `machine.precision` and the device. Out: a `Precision`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from kdpipe.pipeline.models import devices
from kdpipe.schemas.choices import PrecisionName


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """Data types of weights and of products under autocast (None: no autocast); `scaled`: loss scaling."""

    name: PrecisionName
    weights: torch.dtype
    products: torch.dtype | None
    scaled: bool

    @contextmanager
    def autocast(self, device: torch.device) -> Iterator[None]:
        if self.products is None:
            yield
            return
        with torch.autocast(device.type, dtype=self.products):
            yield


PRECISIONS: dict[str, Precision] = {
    "fp32": Precision(name="fp32", weights=torch.float32, products=None, scaled=False),
    "bf16": Precision(name="bf16", weights=torch.float32, products=torch.bfloat16, scaled=False),
    "fp16": Precision(name="fp16", weights=torch.float32, products=torch.float16, scaled=True),
    "fp16-pure": Precision(name="fp16-pure", weights=torch.float16, products=None, scaled=False),
}
BY_DTYPE = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def choose_precision(setting: str, device: torch.device) -> Precision:
    """Resolve `auto`: fp32 on the CPU, bf16 where the GPU computes in it, else fp16 with fp32 masters."""
    return PRECISIONS[BY_DTYPE[devices.choose_dtype("auto", device)] if setting == "auto" else setting]
