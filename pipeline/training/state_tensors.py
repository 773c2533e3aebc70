"""The state of a run as named tensors: the model, random generators, loss scaler; and safetensors files of them.

In: a model, a device, a loss scaler. Out: tensors and records that restore them to the bit, and durable files. No
pickle is written or read.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from kdpipe.cache.durable.files import advice, apply_umask, system_error
from kdpipe.schemas.checkpoint import ScalerState
from kdpipe.schemas.errors import FileDamaged, KdpipeError, WriteError

_ORIGINAL_SETTINGS: Final = "resume with the original student and settings"


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters and the buffers that a model saves; not copies."""
    saved = model.state_dict(keep_vars=True)
    trained = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    return trained | {name: value for name, value in model.named_buffers() if name in saved}


def restore_model(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Restore the tensors of `model_tensors`; those of another model are refused."""
    own = model_tensors(model)
    if own.keys() != tensors.keys():
        name = min(own.keys() ^ tensors.keys())
        reason = "is not a trainable parameter" if name in tensors else "is missing in the checkpoint"
        raise KdpipeError(f"the checkpoint does not match this student: {name} {reason}", hint=_ORIGINAL_SETTINGS)
    for name, value in tensors.items():
        if value.shape != own[name].shape or value.dtype != own[name].dtype:
            saved, expected = (f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in (value, own[name]))
            raise KdpipeError(
                f"the checkpoint does not match this student: {name} is {saved}, expected {expected}",
                hint=_ORIGINAL_SETTINGS,
            )
    with torch.no_grad():
        for name, value in tensors.items():
            own[name].copy_(value)


def random_tensors(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's generators, which dropout uses; training uses no other random numbers."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """Restore the generators of `random_tensors`; another kind of device keeps its own seed."""
    torch.set_rng_state(tensors["cpu"].clone())
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"].clone(), device)


def scaler_state(scaler: torch.amp.GradScaler | None) -> ScalerState | None:
    if scaler is None:
        return None
    values = scaler.state_dict()
    return ScalerState(scale=values["scale"], growth_tracker=values["_growth_tracker"])


def restore_scaler(scaler: torch.amp.GradScaler | None, state: ScalerState | None) -> None:
    """Restore the loss scale; without a saved one the scaler starts fresh."""
    if scaler is not None and state is not None:
        scaler.load_state_dict({**scaler.state_dict(), "scale": state.scale, "_growth_tracker": state.growth_tracker})


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a new file durably; tensors that share memory are written separately."""
    try:
        safetensors.torch.save_file(_separate(tensors), path)
    except safetensors.SafetensorError as error:
        cause = system_error(error)
        hint = "free some disk space, then run the command again" if cause is None else advice(cause, path)
        raise WriteError(f"could not write {path.name}: {error}", hint=hint) from None
    apply_umask(path)
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a file whose digest was verified."""
    try:
        return dict(safetensors.torch.load_file(path))
    except safetensors.SafetensorError as error:
        raise FileDamaged(f"{path.name} is not a safetensors file: {error}") from None


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU that share no memory, as safetensors requires."""
    separate: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().contiguous().cpu()
        memory = own.untyped_storage().data_ptr()
        separate[name] = own.clone() if memory in seen else own
        seen.add(memory)
    return separate
