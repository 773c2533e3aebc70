"""Named tensors in a file: the one place that knows safetensors.

In: tensors by name. Out: a file that is on the disk, and the same tensors to the bit, on the CPU. No pickle is written
or read.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from kdpipe.cache.durable.files import advice, apply_umask, system_error
from kdpipe.schemas.errors import FileDamaged, WriteError


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a new file, durably; every name has bytes of its own, also where tensors share memory."""
    try:
        safetensors.torch.save_file(_apart(tensors), path)
    except safetensors.SafetensorError as error:
        refused = system_error(error)
        hint = "free some space on its disk, then run the command again" if refused is None else advice(refused, path)
        raise WriteError(f"{path.name} could not be written: {error}", hint=hint) from None
    apply_umask(path)
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a file whose digest has been checked."""
    try:
        return dict(safetensors.torch.load_file(path))
    except safetensors.SafetensorError as error:
        raise FileDamaged(f"{path.name} is no safetensors file: {error}") from None


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors takes them: whole, on the CPU, no two of one memory."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().contiguous().cpu()
        memory = own.untyped_storage().data_ptr()
        found[name] = own.clone() if memory in seen else own
        seen.add(memory)
    return found
