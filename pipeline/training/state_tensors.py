"""What a run must not forget, as named tensors: what is learnt and moves along, and the random generators.

In: a model, a device, a loss scaler. Out: tensors and records that say all of it, and the way back, to the bit.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kdpipe.schemas.checkpoint import ScalerState
from kdpipe.schemas.errors import KdpipeError


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a model learns, and the buffers that it would save; not copies."""
    saved = model.state_dict(keep_vars=True)
    trained = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    return trained | {name: value for name, value in model.named_buffers() if name in saved}


def restore_model(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors back where `model_tensors` found them; those of another model are refused."""
    own = model_tensors(model)
    if own.keys() != tensors.keys():
        odd = min(own.keys() ^ tensors.keys())
        where = "is not learnt by this student" if odd in tensors else "is missing there"
        raise KdpipeError(f"the saved state is of another student: {odd} {where}", hint=_SAME_SETTINGS)
    for name, value in tensors.items():
        if value.shape != own[name].shape or value.dtype != own[name].dtype:
            said, here = (f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in (value, own[name]))
            raise KdpipeError(
                f"the saved state is of another student: {name} is {said} there and {here} here", hint=_SAME_SETTINGS
            )
    with torch.no_grad():
        for name, value in tensors.items():
            own[name].copy_(value)


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that later steps do not change."""
    return {name: value.detach().clone() for name, value in tensors.items()}


def random_tensors(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's generators, of which dropout draws; nothing else in training draws."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """Go on drawing where `random_tensors` was asked; on another kind of device its own seed stands."""
    torch.set_rng_state(tensors["cpu"].clone())
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"].clone(), device)


def scaler_state(scaler: torch.amp.GradScaler | None) -> ScalerState | None:
    """The scale of the loss, if it is scaled."""
    if scaler is None:
        return None
    said = scaler.state_dict()
    return ScalerState(scale=said["scale"], growth_tracker=said["_growth_tracker"])


def restore_scaler(scaler: torch.amp.GradScaler | None, state: ScalerState | None) -> None:
    """Scale as before; a run that did not scale starts as a new one."""
    if scaler is not None and state is not None:
        scaler.load_state_dict({**scaler.state_dict(), "scale": state.scale, "_growth_tracker": state.growth_tracker})


_SAME_SETTINGS = "resume with the student and settings that the run began with"
