"""The decoder layers of a model, and their states, recorded with hooks during a forward pass.

In: the body of a model. Out: states by layer; 0 is the input of the first. Where the layers are not found the model
returns all hidden states itself, which takes more memory.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def body_of(model: Any) -> nn.Module:
    """The model without its head; the model itself if there is no such module."""
    body: nn.Module = model.base_model
    if body is model:
        # Llama 4 has the base_model_prefix of another family.
        body = getattr(model, "model", model)
    return body


def decoder_layers(body: nn.Module, n_layers: int) -> Sequence[nn.Module] | None:
    """The decoder layers, if exactly one module list has their number."""
    lists = [module for module in body.modules() if isinstance(module, nn.ModuleList) and len(module) == n_layers]
    return list(lists[0]) if len(lists) == 1 else None


@contextmanager
def recorded_states(layers: Sequence[nn.Module], wanted: Collection[int], kept: dict[int, Tensor]) -> Iterator[None]:
    """Record the input of the first layer (number 0) and outputs of layers within the context."""
    handles = []
    if layers:
        for number in wanted:
            if number == 0:
                handles.append(layers[0].register_forward_pre_hook(_keep_input(kept), with_kwargs=True))
            else:
                handles.append(layers[number - 1].register_forward_hook(_keep_output(kept, number)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def all_states(wanted: bool) -> dict[str, bool]:
    """Arguments for a forward pass that returns the states of every layer."""
    return {"output_hidden_states": True} if wanted else {}


def stream_dim(states: Tensor, ids_BT: Tensor) -> int | None:
    """The dimension of parallel streams in a layer's states of one sequence: [B, T, S, H] or [S, B, T, H]."""
    if states.dim() == 3:
        return None
    return 2 if states.shape[:2] == ids_BT.shape else 0


def merged(kept: Mapping[int, Tensor], dim: int | None) -> dict[int, Tensor]:
    """States [B, T, H] of each layer, averaged over parallel streams."""
    return {
        number: states if dim is None or states.dim() == 3 else states.mean(dim=dim) for number, states in kept.items()
    }


def _keep_input(kept: dict[int, Tensor]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept[0] = args[0] if args else kwargs["hidden_states"]

    return hook


def _keep_output(kept: dict[int, Tensor], number: int) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        kept[number] = out[0] if isinstance(out, tuple | list) else out

    return hook
