"""`Student`: a model in training, run batch by batch for its last states and the layers that hidden losses need.

In: a loaded model. Out: `StudentStates`; its head, for `pipeline/losses/head_chunks.py`; its parameters by name. A
probe with a few tokens finds out whether the head is a plain linear layer and whether packed documents can be kept
separate.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kdpipe.pipeline.batches.micro_batch import MicroBatch
from kdpipe.pipeline.models.head import TOLERANCE, Head
from kdpipe.pipeline.models.layers import all_states, merged, recorded_states
from kdpipe.pipeline.models.model_info import ModelInfo, explained_load_errors
from kdpipe.pipeline.models.probe import probe, probe_ids
from kdpipe.pipeline.students import packed_documents as layout
from kdpipe.pipeline.students.packed_documents import Layout

# Key of the head's input among the states of a forward pass.
LAST = -1
PROBE_DOCUMENTS = (7, 9)
NO_HEAD = "output head not found; computing logits with the whole model, which takes more memory and time"
CALLED_HEAD = "output head is not a plain linear layer; it is called for each chunk of rows, which is slower"
NOT_PACKED = "does not separate packed documents; they are run one per row, which is slower"


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentStates:
    """`rows_NH`: the head's input (states after the final norm) at a batch's places; `layers`: outputs by layer number,
    0 the embeddings, the last one after the final norm."""

    rows_NH: Tensor
    layers: Mapping[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallableHead:
    """A head that is called as a function, from states to logits of the first `vocabulary_size` ids."""

    module: Callable[[Tensor], Tensor]
    vocabulary_size: int
    scale: float = 1.0
    soft_cap: float | None = None

    def __call__(self, states_RH: Tensor) -> Tensor:
        logits_RV = self.module(states_RH)[..., : self.vocabulary_size] * self.scale
        return logits_RV if self.soft_cap is None else torch.tanh(logits_RV / self.soft_cap) * self.soft_cap


class Student:
    """`model` is a transformers model, with LoRA adapters inside if any; `adapter` saves these.

    `notes` are lines for the user; `layout`: how packed documents are run.
    """

    def __init__(self, model: Any, shape: ModelInfo, vocabulary_size: int, adapter: Any = None) -> None:
        self.model, self.shape, self.adapter = model, shape, adapter
        self.vocabulary_size = vocabulary_size
        self._whole = False
        model.eval()
        notes: list[str] = []
        with torch.no_grad(), explained_load_errors(shape.name):
            probed = probe(model, shape, self.dtype, self.device, vocabulary_size)
            self._body: Any = probed.body
            self._layers, self._stream_dim = probed.layers, probed.stream_dim
            self.head: Head | CallableHead = self._known_head(probed.head, notes)
            self.layout: Layout = "packed" if self._separates_documents() else "alone"
        if self.layout == "alone":
            notes.append(NOT_PACKED)
        self.notes = tuple(f"{shape.name}: {note}" for note in notes)

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = next(self.model.parameters()).dtype
        return dtype

    def trainable(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by name, tied ones once."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def n_parameters(self) -> int:
        """The number of parameters, tied ones counted once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def states(self, batch: MicroBatch, layers: Collection[int] = ()) -> StudentStates:
        """Run a batch; each document attends to itself only, and padding has no effect."""
        wanted = frozenset(layers)
        tokens_BT, document_BT = batch.tokens_BT, batch.document_BT
        at = self.shape.switches_at
        switches = at is not None and tokens_BT.shape[1] > at
        packed = switches or layout.is_packed(document_BT)
        if not packed:
            states = self._run(tokens_BT, wanted)
        elif self.layout == "packed" and not switches:
            states = self._run(tokens_BT, wanted, layout.positions(document_BT))
        else:
            states = layout.run_alone(tokens_BT, document_BT, at, lambda ids_DL: self._run(ids_DL, wanted))
        rows_NH = states.pop(LAST).flatten(0, 1).index_select(0, batch.places_N)
        return StudentStates(rows_NH=rows_NH, layers=states)

    def logits(self, ids_BT: Tensor) -> Tensor:
        """Logits of every position from the model's own forward pass."""
        logits: Tensor = self.model(ids_BT, use_cache=False).logits[..., : self.vocabulary_size]
        return logits

    def _run(
        self, ids_BT: Tensor, wanted: frozenset[int] = frozenset(), position_BT: Tensor | None = None
    ) -> dict[int, Tensor]:
        """One forward pass: the head's input and the wanted layers."""
        last, kept = self.shape.n_layers, dict[int, Tensor]()
        between = wanted - {last}
        ask = (bool(between) and self._layers is None) or (self._whole and last in wanted)
        model = self.model if self._whole else self._body
        places = {} if position_BT is None else {"position_ids": position_BT}
        with recorded_states(self._layers or (), between, kept):
            out = model(ids_BT, use_cache=False, **places, **all_states(ask))
        if between and self._layers is None:
            kept = {number: out.hidden_states[number] for number in between}
        if last in wanted:
            kept[last] = out.hidden_states[-1] if self._whole else out.last_hidden_state
        kept = merged(kept, self._stream_dim)
        kept[LAST] = out.logits if self._whole else out.last_hidden_state
        return kept

    def _known_head(self, head: Head | None, notes: list[str]) -> Head | CallableHead:
        if head is None:
            self._whole = True
            notes.append(NO_HEAD)
            return CallableHead(module=_identity, vocabulary_size=self.vocabulary_size)
        if head.is_plain:
            return head
        notes.append(CALLED_HEAD)
        return CallableHead(
            module=head.module, vocabulary_size=self.vocabulary_size, scale=head.scale, soft_cap=head.soft_cap
        )

    def _separates_documents(self) -> bool:
        """Run two documents packed and alone: are their states equal, and is the second independent of the first?

        With random init little may leak, so the second test is the stricter one.
        """
        first, second = PROBE_DOCUMENTS
        ids_BT = probe_ids(first + second, self.vocabulary_size, self.device)[None]
        document_BT = torch.tensor([[0] * first + [1] * second], device=self.device)
        position_BT = layout.positions(document_BT)
        other_BT = ids_BT.clone()
        other_BT[:, :first] = (other_BT[:, :first] + 1) % self.vocabulary_size
        try:
            together, moved = (self._run(ids, position_BT=position_BT)[LAST] for ids in (ids_BT, other_BT))
        except (TypeError, ValueError, RuntimeError):  # it does not accept these positions
            return False
        apart = torch.cat([self._run(ids_BT[:, :first])[LAST], self._run(ids_BT[:, first:])[LAST]], dim=1)
        tolerance = TOLERANCE[self.dtype] * apart.abs().max()
        leaked = (together - moved)[:, first:].abs().max()
        return bool((together - apart).abs().max() <= tolerance and leaked <= tolerance / 10)


def _identity(logits_RV: Tensor) -> Tensor:
    return logits_RV
