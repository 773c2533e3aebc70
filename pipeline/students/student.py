"""`Student`: a model that learns, read batch by batch to its last states and to those that losses on states need.

In: a loaded model. Out: `StudentStates`; its head, for `pipeline/losses/head_chunks.py`; its parameters by name.
Whether the head is a plain projection and whether packed documents can be kept apart is found out once, by reading a
few tokens.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kdpipe.pipeline.batches.micro_batch import MicroBatch
from kdpipe.pipeline.models.head import TOLERANCE, Head
from kdpipe.pipeline.models.layers import all_states, merged, watching
from kdpipe.pipeline.models.model_info import ModelInfo, in_two_lines
from kdpipe.pipeline.models.probe import probe, probe_ids
from kdpipe.pipeline.students import packed_documents as layout
from kdpipe.pipeline.students.packed_documents import Layout

# What the head takes, among the states that a forward pass leaves.
LAST = -1
PROBE_DOCUMENTS = (7, 9)
NO_HEAD = "its output head could not be told apart: logits come from the model whole, which takes more memory and time"
CALLED_HEAD = "its output head is no plain matrix: it is called for each chunk of rows, which takes more time"
NOT_PACKED = "it does not keep packed documents apart: they are read one to a row, which takes more time"


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentStates:
    """`rows_NH` is behind the final norm at a batch's places, or what else the head takes; `layers` by number, 0 the
    embeddings, each as its layer leaves it, the last one behind the final norm."""

    rows_NH: Tensor
    layers: Mapping[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallableHead:
    """A head that is called as it is: states to logits of the first `vocabulary_size` ids."""

    module: Callable[[Tensor], Tensor]
    vocabulary_size: int
    scale: float = 1.0
    soft_cap: float | None = None

    def __call__(self, states_RH: Tensor) -> Tensor:
        logits_RV = self.module(states_RH)[..., : self.vocabulary_size] * self.scale
        return logits_RV if self.soft_cap is None else torch.tanh(logits_RV / self.soft_cap) * self.soft_cap


class Student:
    """`model` is as transformers made it, with adapters inside where LoRA is used; `adapter` saves those.

    `notes` are worth a line each; `layout` says how packed documents are read.
    """

    def __init__(self, model: Any, shape: ModelInfo, vocabulary_size: int, adapter: Any = None) -> None:
        self.model, self.shape, self.adapter = model, shape, adapter
        self.vocabulary_size = vocabulary_size
        self._whole = False
        model.eval()
        notes: list[str] = []
        with torch.no_grad(), in_two_lines(shape.name):
            found = probe(model, shape, self.dtype, self.device, vocabulary_size)
            self._body: Any = found.body
            self._layers, self._stream_dim = found.layers, found.stream_dim
            self.head: Head | CallableHead = self._known_head(found.head, notes)
            self.layout: Layout = "packed" if self._keeps_apart() else "alone"
        if self.layout == "alone":
            notes.append(NOT_PACKED)
        self.notes = tuple(f"{shape.name}: {note}" for note in notes)

    @property
    def device(self) -> torch.device:
        """Where it reads and learns."""
        found: torch.device = next(self.model.parameters()).device
        return found

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""
        found: torch.dtype = next(self.model.parameters()).dtype
        return found

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, by name, tied ones once."""
        return {name: each for name, each in self.model.named_parameters() if each.requires_grad}

    def n_parameters(self) -> int:
        """How many numbers it has, tied ones counted once."""
        return sum(each.numel() for each in self.model.parameters())

    def states(self, batch: MicroBatch, layers: Collection[int] = ()) -> StudentStates:
        """Read a batch; each document sees itself alone, and padding changes nothing."""
        wanted = frozenset(layers)
        tokens_BT, document_BT = batch.tokens_BT, batch.document_BT
        at = self.shape.switches_at
        switches = at is not None and tokens_BT.shape[1] > at
        packed = switches or layout.is_packed(document_BT)
        if not packed:
            found = self._read(tokens_BT, wanted)
        elif self.layout == "packed" and not switches:
            found = self._read(tokens_BT, wanted, layout.positions(document_BT))
        else:
            found = layout.read_alone(tokens_BT, document_BT, at, lambda ids_DL: self._read(ids_DL, wanted))
        rows_NH = found.pop(LAST).flatten(0, 1).index_select(0, batch.places_N)
        return StudentStates(rows_NH=rows_NH, layers=found)

    def logits(self, ids_BT: Tensor) -> Tensor:
        """Logits of every position as the model itself gives them."""
        found: Tensor = self.model(ids_BT, use_cache=False).logits[..., : self.vocabulary_size]
        return found

    def _read(
        self, ids_BT: Tensor, wanted: frozenset[int] = frozenset(), position_BT: Tensor | None = None
    ) -> dict[int, Tensor]:
        """One forward pass: what the head takes, and the wanted layers."""
        last, kept = self.shape.n_layers, dict[int, Tensor]()
        between = wanted - {last}
        ask = (bool(between) and self._layers is None) or (self._whole and last in wanted)
        model = self.model if self._whole else self._body
        places = {} if position_BT is None else {"position_ids": position_BT}
        with watching(self._layers or (), between, kept):
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
            return CallableHead(module=_as_it_is, vocabulary_size=self.vocabulary_size)
        if head.is_plain:
            return head
        notes.append(CALLED_HEAD)
        return CallableHead(
            module=head.module, vocabulary_size=self.vocabulary_size, scale=head.scale, soft_cap=head.soft_cap
        )

    def _keeps_apart(self) -> bool:
        """Read two documents packed and alone: are their states equal, and is the second blind to the first?

        What leaks may be little in a model whose layers are still faint, so that the second test is the stricter one.
        """
        first, second = PROBE_DOCUMENTS
        ids_BT = probe_ids(first + second, self.vocabulary_size, self.device)[None]
        document_BT = torch.tensor([[0] * first + [1] * second], device=self.device)
        position_BT = layout.positions(document_BT)
        other_BT = ids_BT.clone()
        other_BT[:, :first] = (other_BT[:, :first] + 1) % self.vocabulary_size
        try:
            together, moved = (self._read(ids, position_BT=position_BT)[LAST] for ids in (ids_BT, other_BT))
        except (TypeError, ValueError, RuntimeError):  # it takes no positions, or not these
            return False
        apart = torch.cat([self._read(ids_BT[:, :first])[LAST], self._read(ids_BT[:, first:])[LAST]], dim=1)
        tolerance = TOLERANCE[self.dtype] * apart.abs().max()
        leaked = (together - moved)[:, first:].abs().max()
        return bool((together - apart).abs().max() <= tolerance and leaked <= tolerance / 10)


def _as_it_is(logits_RV: Tensor) -> Tensor:
    return logits_RV
