"""`Forward`: token ids through a model's own layers, to its last states and those of the requested layers.

In: right-padded ids without a mask. Out: states of every position; logits only where the model has no plain head.
Causal models never attend to the right, so neither padding nor another document matters (docs/decisions/0005).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kdpipe.pipeline.models.layers import all_states, merged, recorded_states
from kdpipe.pipeline.models.model_info import explained_load_errors
from kdpipe.pipeline.models.probe import probe
from kdpipe.pipeline.teachers.load_teacher import LoadedTeacher


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherStates:
    """States of a batch: `last` after the final norm, `layers` by number, 0 the embeddings.

    Where the head is unknown, `logits` are the model's own, and `last` is set only if its layer is requested.
    """

    last_BTH: Tensor | None
    layers: Mapping[int, Tensor] = field(default_factory=dict)
    logits_BTV: Tensor | None = None


class Forward:
    """Reads batches with one model; `head`: None where a probe finds no plain output head."""

    def __init__(self, loaded: LoadedTeacher, vocabulary_size: int) -> None:
        self._model: Any = loaded.model
        self._n_layers = loaded.shape.n_layers
        self.device = loaded.device
        self.shape = loaded.shape
        with torch.inference_mode(), explained_load_errors(loaded.shape.name):
            parts = probe(loaded.model, loaded.shape, loaded.dtype, loaded.device, vocabulary_size)
        self._body: Any = parts.body
        self._layers, self._stream_dim = parts.layers, parts.stream_dim
        self.head, self.device_of_logits = parts.head, parts.device_of_logits

    def read(self, ids_BT: Tensor, layers: frozenset[int] = frozenset()) -> TeacherStates:
        """Read ids, which are on the device; only states of the given layers are kept."""
        between = layers - {self._n_layers}
        kept: dict[int, Tensor] = {}
        need_all = bool(between) and self._layers is None
        with recorded_states(self._layers or (), between, kept):
            if self.head is not None:
                out = self._body(ids_BT, use_cache=False, **all_states(need_all))
                last, logits = out.last_hidden_state, None
            else:
                need_last = self._n_layers in layers
                out = self._model(ids_BT, use_cache=False, **all_states(need_all or need_last))
                last, logits = out.hidden_states[-1] if need_last else None, out.logits
        if need_all:
            kept = {number: out.hidden_states[number] for number in between}
        if last is not None:
            kept[self._n_layers] = last
        return TeacherStates(last_BTH=last, layers=merged(kept, self._stream_dim), logits_BTV=logits)

    def own_logits(self, ids_BT: Tensor) -> Tensor:
        """Logits of every position by the model's own head."""
        logits: Tensor = self._model(ids_BT, use_cache=False).logits
        return logits

    def every_layer(self, ids_BT: Tensor) -> list[Tensor]:
        """Every layer's states, then the model's own logits."""
        states = self.read(ids_BT, frozenset(range(self._n_layers + 1))).layers
        return [*(states[number] for number in range(self._n_layers + 1)), self.own_logits(ids_BT)]
