"""`Reader`: a few pieces through the model, on the device, and what is kept of them put together on the host.

In: pieces. Out: a `Reading` that is under way, then its `Answer`. Before it: `forward.py`, `head.py`, `padded.py`.
After it: `local.py`, which sees to memory and to the order of batches.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdpipe.cache.rows import Floats
from kdpipe.pipeline.data.pieces import Piece
from kdpipe.pipeline.hidden import Pca, Projector, mean_states
from kdpipe.pipeline.targets.reduce import Reduced, Reducer, to_block
from kdpipe.pipeline.teachers import Answer, Asked
from kdpipe.pipeline.teachers.forward import Forward, States
from kdpipe.pipeline.teachers.padded import Padded, pad
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.targets import PcaProjection, Vector

# Bytes of the float32 logits that exist at a time: rows enough for a fast product, few enough to leave memory alone.
CPU_LOGITS_BYTES, GPU_LOGITS_BYTES = 32 << 20, 512 << 20
MIN_ROWS, MAX_ROWS = 64, 4096
# Numbers of states that are widened to float32 at a time.
WIDENED_NUMBERS = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Pieces under way: what is on its way to the host, and the event after which it is there."""

    pieces: Sequence[Piece]
    reduced: Reduced
    pooled: dict[int, Tensor]
    rows: dict[int, Tensor]
    state_NH: Tensor | None
    there: torch.cuda.Event | None


class NotFinite(Exception):
    """A position whose logits mean nothing."""

    def __init__(self, piece: Piece, row: int) -> None:
        super().__init__(f"row {row} of document {piece.document}")
        self.piece, self.row = piece, row


class Reader:
    """Reads for one question; `n_rows` is how many rows have logits at a time."""

    def __init__(self, forward: Forward, asked: Asked) -> None:
        device, hidden = forward.device_of_logits, asked.hidden
        self._forward = forward
        self._asked = asked
        starts_word = None if asked.starts_word is None else torch.from_numpy(asked.starts_word)
        self._device = device
        self._reducer = Reducer(asked, device, starts_word)
        self._pooled = Projector(hidden.pooled, forward.width, device, _fitted("pooled", hidden.pooled, asked))
        self._rows = Projector(hidden.rows, forward.width, device, _fitted("rows", hidden.rows, asked))
        self._layers = frozenset((*self._pooled.layers, *self._rows.layers))
        self._keeps_state = asked.targets.keep.kind == "state"
        if self._keeps_state and forward.head is None:
            raise ConfigError(
                "targets of kind state need an output head that is one matrix, this teacher's is not",
                hint="choose another kind of targets",
            )
        logits_bytes = CPU_LOGITS_BYTES if device.type == "cpu" else GPU_LOGITS_BYTES
        self.n_rows = min(MAX_ROWS, max(MIN_ROWS, logits_bytes // (4 * asked.vocabulary_size)))

    def start(self, pieces: Sequence[Piece]) -> Reading:
        """Read pieces; on a GPU this returns while it is still at work."""
        batch = pad(pieces, self._asked.seed).to(self._forward.device)
        states = self._forward.read(batch.ids_BT, self._layers)
        reduced = Reduced.joined([part.to("cpu", non_blocking=True) for part in self._reduced(batch, states)])
        lengths = [len(piece) for piece in pieces]
        pooled = {layer: self._means(layer, states.layers[layer], lengths) for layer in self._pooled.layers}
        rows = {layer: self._vectors(layer, states.layers[layer], batch) for layer in self._rows.layers}
        state = _host(_picked(states.last_BTH, batch.rows_N)) if self._keeps_state else None
        there = torch.cuda.Event() if self._device.type == "cuda" else None  # type: ignore[no-untyped-call]  # torch
        if there is not None:
            there.record(torch.cuda.current_stream(self._device))
        return Reading(pieces=pieces, reduced=reduced, pooled=pooled, rows=rows, state_NH=state, there=there)

    def finish(self, reading: Reading) -> Answer:
        """Wait for a reading and put its answer together."""
        if reading.there is not None:
            reading.there.synchronize()
        loss_mask = np.concatenate([piece.loss_mask for piece in reading.pieces])
        if not bool(reading.reduced.finite_R.all()):
            _raise_not_finite(reading, np.flatnonzero(loss_mask))
        block = to_block(
            [reading.reduced],
            loss_mask,
            self._asked.targets,
            hidden={layer: _numbers(rows) for layer, rows in reading.rows.items()},
            state=None if reading.state_NH is None else _numbers(reading.state_NH),
        )
        return Answer(block=block, pooled={layer: _numbers(vectors) for layer, vectors in reading.pooled.items()})

    def _reduced(self, batch: Padded, states: States) -> Iterator[Reduced]:
        """Logits of a few rows at a time, and what is kept of them."""
        head = self._forward.head
        flat_PX = (states.last_BTH if states.logits_BTV is None else states.logits_BTV).flatten(0, 1)
        for start in range(0, max(1, len(batch.positions_R)), self.n_rows):
            chunk = slice(start, start + self.n_rows)
            rows = flat_PX.index_select(0, batch.positions_R[chunk].to(flat_PX.device))
            logits_RV = rows[:, : self._asked.vocabulary_size].float() if head is None else head.logits(rows)
            labels_R, keys_R = (x[chunk].to(self._device) for x in (batch.labels_R, batch.keys_R))
            yield self._reducer.reduce(logits_RV.to(self._device), labels_R, keys_R)

    def _means(self, layer: int, states_BTH: Tensor, lengths: Sequence[int]) -> Tensor:
        """The mean over each piece's rows, made narrow; a few pieces at a time, since it is taken in float32."""
        lengths_B = torch.tensor(lengths, device=states_BTH.device)
        step = max(1, WIDENED_NUMBERS // states_BTH[0].numel())
        means = [
            mean_states(states_BTH[i : i + step], lengths_B[i : i + step]).to(self._device)
            for i in range(0, len(lengths), step)
        ]
        return _host(self._pooled.project(layer, torch.cat(means)))

    def _vectors(self, layer: int, states_BTH: Tensor, batch: Padded) -> Tensor:
        """Each row's state, made narrow; some rows at a time."""
        flat_PH = states_BTH.flatten(0, 1)
        step = max(1, WIDENED_NUMBERS // flat_PH.shape[1])
        parts = [
            self._rows.project(layer, flat_PH.index_select(0, rows.to(flat_PH.device)).to(self._device))
            for rows in torch.split(batch.rows_N, step)
        ]
        return _host(torch.cat(parts))


def _fitted(role: str, vectors: Sequence[Vector], asked: Asked) -> dict[int, Pca]:
    """The fitted projections among the tables, by layer."""
    found: dict[int, Pca] = {}
    for vector in vectors:
        if isinstance(vector.projection, PcaProjection):
            name = f"pca_{role}_{vector.layer}"
            found[vector.layer] = (torch.from_numpy(asked.tables[name]), torch.from_numpy(asked.tables[f"{name}_mean"]))
    return found


def _host(tensor: Tensor) -> Tensor:
    """On its way to the host; from a GPU into pinned memory, while other work goes on."""
    return tensor.to("cpu", non_blocking=True)


def _numbers(tensor: Tensor) -> Floats:
    found: Floats = tensor.numpy()
    return found


def _picked(states_BTH: Tensor, rows_N: Tensor) -> Tensor:
    return states_BTH.flatten(0, 1).index_select(0, rows_N.to(states_BTH.device)).float()


def _raise_not_finite(reading: Reading, positions: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> None:
    """Name the first position whose logits mean nothing."""
    row = int(positions[int(np.flatnonzero(~reading.reduced.finite_R.numpy())[0])])
    for piece in reading.pieces:
        if row < len(piece):
            raise NotFinite(piece, row)
        row -= len(piece)
