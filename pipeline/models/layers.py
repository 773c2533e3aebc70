"""The layers of a model, found by their list, and their states, kept by hooks while a batch goes through.

In: the body of a model. Out: states by layer, number 0 what goes into the first. Where the layers cannot be told apart
the model itself is asked for all of them, which takes more memory.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def body_of(model: Any) -> nn.Module:
    """What of a model is in front of its head; the model itself where this cannot be told."""
    body: nn.Module = model.base_model
    if body is model:
        # Llama 4 states the name of another family's body; its own has the usual one.
        body = getattr(model, "model", model)
    return body


def decoder_layers(body: nn.Module, n_layers: int) -> Sequence[nn.Module] | None:
    """Find the layers, if there is exactly one list that could be them."""
    lists = [module for module in body.modules() if isinstance(module, nn.ModuleList) and len(module) == n_layers]
    return list(lists[0]) if len(lists) == 1 else None


@contextmanager
def watching(layers: Sequence[nn.Module], wanted: Collection[int], kept: dict[int, Tensor]) -> Iterator[None]:
    """Keep what goes into the first layer (number 0) and what comes out of layers, for as long as this lasts."""
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
    """What a model is told so that it gives the states of every layer."""
    return {"output_hidden_states": True} if wanted else {}


def stream_dim(states: Tensor, ids_BT: Tensor) -> int | None:
    """Which dimension of a layer's states counts streams: [B, T, S, H] or [S, B, T, H], where one row is read."""
    if states.dim() == 3:
        return None
    return 2 if states.shape[:2] == ids_BT.shape else 0


def merged(kept: Mapping[int, Tensor], dim: int | None) -> dict[int, Tensor]:
    """States [B, T, H] of each layer: of one that passes on several streams their mean."""
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
