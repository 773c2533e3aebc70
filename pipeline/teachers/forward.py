"""`Forward`: token ids through a model's own layers, to its last state and those between that are wanted.

In: right-padded ids without any mask. Out: states of every position; logits only where the model has no plain head.
Before it: `loading.py`, `batching.py`. After it: `head.py` and `local.py`. Causal models never look to the right, so
that neither padding nor another document can matter (docs/decisions/0005).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kdpipe.pipeline.models.head import TOLERANCE, Head, find_head
from kdpipe.pipeline.models.shapes import in_two_lines
from kdpipe.pipeline.teachers.loading import Loaded
from kdpipe.schemas.errors import ConfigError

PROBE_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """What a batch looked like on its way: `last` behind the final norm, `layers` by number, 0 the embeddings.

    Where the head is not known, `logits` are the model's own, and `last` is there if its layer is wanted.
    """

    last_BTH: Tensor | None
    layers: Mapping[int, Tensor] = field(default_factory=dict)
    logits_BTV: Tensor | None = None


class Forward:
    """Reads batches with one model; `head` is None where a probe shows that the model has none that we can use."""

    def __init__(self, loaded: Loaded, vocabulary_size: int) -> None:
        self._model: Any = loaded.model
        self._n_layers = loaded.shape.n_layers
        self._layers = _decoder_layers(loaded.model.base_model, self._n_layers)
        self.device = self.device_of_logits = loaded.device
        self.width = loaded.shape.width
        self.head: Head | None = None
        with torch.inference_mode(), in_two_lines(loaded.shape.name):
            self.head = self._probe(loaded, vocabulary_size)

    def read(self, ids_BT: Tensor, layers: frozenset[int] = frozenset()) -> States:
        """Read ids, which lie on the device; only the named layers' states are kept."""
        between = layers - {self._n_layers}
        kept: dict[int, Tensor] = {}
        ask_all = bool(between) and self._layers is None
        with _watching(self._layers or (), between, kept):
            if self.head is not None:
                out = self._model.base_model(ids_BT, use_cache=False, **_all_states(ask_all))
                last, logits = out.last_hidden_state, None
            else:
                ask_last = self._n_layers in layers
                out = self._model(ids_BT, use_cache=False, **_all_states(ask_all or ask_last))
                last, logits = out.hidden_states[-1] if ask_last else None, out.logits
        if ask_all:
            kept = {number: out.hidden_states[number] for number in between}
        if last is not None:
            kept[self._n_layers] = last
        return States(last_BTH=last, layers=kept, logits_BTV=logits)

    def own_logits(self, ids_BT: Tensor) -> Tensor:
        """Logits of every position as the model itself gives them."""
        logits: Tensor = self._model(ids_BT, use_cache=False).logits
        return logits

    def every_layer(self, ids_BT: Tensor) -> list[Tensor]:
        """Read ids once more and give every layer's states and, behind them, the model's own logits."""
        states = self.read(ids_BT, frozenset(range(self._n_layers + 1))).layers
        return [*(states[number] for number in range(self._n_layers + 1)), self.own_logits(ids_BT)]

    def _probe(self, loaded: Loaded, vocabulary_size: int) -> Head | None:
        """Read a few tokens in two ways: does our head give the model's logits, and does nothing look to the right?"""
        n = min(PROBE_TOKENS, loaded.shape.max_positions or PROBE_TOKENS)
        ids_BT = (torch.arange(n, device=self.device) * 7919 % vocabulary_size)[None]
        own_TV = self._model(ids_BT, use_cache=False).logits[0].clone()
        self.device_of_logits = own_TV.device
        other_BT = ids_BT.clone()
        other_BT[0, -1] = (other_BT[0, -1] + 1) % vocabulary_size
        moved_TV = self._model(other_BT, use_cache=False).logits[0]
        if (own_TV[:-1] - moved_TV[:-1]).abs().max() > TOLERANCE[loaded.dtype] * own_TV.abs().max():
            raise ConfigError(
                f"{loaded.shape.name} is no causal language model: its logits change with tokens that come later",
                hint="a decoder-only language model is needed",
            )
        body = loaded.model.base_model
        if body is loaded.model:
            return None
        states = getattr(body(ids_BT, use_cache=False), "last_hidden_state", None)
        if not isinstance(states, Tensor):
            return None
        self.device_of_logits = states.device
        return find_head(loaded.model, loaded.shape.config.get_text_config(), states[0], own_TV, vocabulary_size)


def _all_states(wanted: bool) -> dict[str, bool]:
    return {"output_hidden_states": True} if wanted else {}


def _decoder_layers(body: nn.Module, n_layers: int) -> Sequence[nn.Module] | None:
    """Find the layers, if there is exactly one list that could be them."""
    lists = [module for module in body.modules() if isinstance(module, nn.ModuleList) and len(module) == n_layers]
    return list(lists[0]) if len(lists) == 1 else None


@contextmanager
def _watching(layers: Sequence[nn.Module], wanted: frozenset[int], kept: dict[int, Tensor]) -> Iterator[None]:
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


def _keep_input(kept: dict[int, Tensor]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept[0] = args[0] if args else kwargs["hidden_states"]

    return hook


def _keep_output(kept: dict[int, Tensor], number: int) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        kept[number] = out[0] if isinstance(out, tuple) else out

    return hook
