"""`LogitReader`: a few pieces through the model, on the device, and what is kept of them put together on the host.

In: pieces. Out: a `PendingReading` that is under way, then its `CaptureResult`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdpipe.cache.format.rows import Floats
from kdpipe.pipeline.documents.segments import Segment
from kdpipe.pipeline.targets.fidelity import FidelityMeter, Sample
from kdpipe.pipeline.targets.hidden_states import Pca, Projector, mean_states
from kdpipe.pipeline.targets.reduce import ReducedRows, Reducer, to_block
from kdpipe.pipeline.targets.request import TargetRequest
from kdpipe.pipeline.teachers import CaptureResult
from kdpipe.pipeline.teachers.forward import Forward, TeacherStates
from kdpipe.pipeline.teachers.padded import PaddedPieces, pad
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.targets import PcaProjection, Vector

# Bytes of the float32 logits that exist at a time: rows enough for a fast product (on a CPU, 512 of 32,000 logits take
# 0.95 of the time of 256), few enough to leave memory alone.
CPU_LOGITS_BYTES, GPU_LOGITS_BYTES = 64 << 20, 512 << 20
MIN_ROWS, MAX_ROWS = 64, 4096
# Numbers of states that are widened to float32 at a time.
WIDENED_NUMBERS = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingReading:
    """Pieces under way: what is on its way to the host, and the event after which it is there."""

    pieces: Sequence[Segment]
    reduced: list[ReducedRows]
    pooled: dict[int, Tensor]
    rows: dict[int, Tensor]
    state_NH: Tensor | None
    sample: Sample | None
    there: torch.cuda.Event | None


def logits_bytes(device: torch.device) -> int:
    """How many bytes of logits may exist at a time."""
    return CPU_LOGITS_BYTES if device.type == "cpu" else GPU_LOGITS_BYTES


class NotFinite(Exception):
    """A position whose logits mean nothing."""

    def __init__(self, piece: Segment, row: int) -> None:
        super().__init__(f"row {row} of document {piece.document}")
        self.piece, self.row = piece, row


class LogitReader:
    """Reads for one question; `n_rows` is how many rows have logits at a time, fewer where memory is short."""

    def __init__(self, forward: Forward, asked: TargetRequest) -> None:
        device, hidden = forward.device_of_logits, asked.hidden
        self._forward = forward
        self.asked = asked
        starts_word = None if asked.starts_word is None else torch.from_numpy(asked.starts_word)
        self._device = device
        self._reducer = Reducer(asked, device, starts_word)
        self._pooled = Projector(hidden.pooled, forward.shape.widths, device, _fitted("pooled", hidden.pooled, asked))
        self._rows = Projector(hidden.rows, forward.shape.widths, device, _fitted("rows", hidden.rows, asked))
        self._layers = frozenset((*self._pooled.layers, *self._rows.layers))
        self._keeps_state = asked.targets.keep.kind == "state"
        if self._keeps_state and forward.head is None:
            raise ConfigError(
                "targets of kind state need an output head that is one matrix, this teacher's is not",
                hint="choose another kind of targets",
            )
        self.meter: FidelityMeter | None = None
        if asked.fidelity_every and asked.targets.has_entries:
            width = forward.shape.last_width if forward.head is not None else None
            self.meter = FidelityMeter(asked, width, device)
        self._buffer_RV: Tensor | None = None
        self.is_short_of_memory = False
        self.n_rows = min(MAX_ROWS, max(MIN_ROWS, logits_bytes(device) // (4 * asked.vocabulary_size)))

    def start(self, pieces: Sequence[Segment]) -> PendingReading:
        """Read pieces; on a GPU this returns while it is still at work."""
        asked = self.asked
        batch = pad(pieces, asked.seed, asked.fidelity_every).to(self._forward.device)
        states = self._forward.read(batch.ids_BT, self._layers)
        sample = self.meter.sample() if self.meter is not None else None
        reduced = [part.to("cpu", non_blocking=True) for part in self._reduced(batch, states, sample)]
        lengths = [len(piece) for piece in pieces]
        pooled = {layer: self._means(layer, states.layers[layer], lengths) for layer in self._pooled.layers}
        rows = {layer: self._vectors(layer, states.layers[layer], batch) for layer in self._rows.layers}
        state = _host(_rows(states.last_BTH, batch.rows_N).float()) if self._keeps_state else None
        there = torch.cuda.Event() if self._device.type == "cuda" else None  # type: ignore[no-untyped-call]  # torch
        if there is not None:
            there.record(torch.cuda.current_stream(self._device))
        return PendingReading(
            pieces=pieces, reduced=reduced, pooled=pooled, rows=rows, state_NH=state, sample=sample, there=there
        )

    def finish(self, reading: PendingReading) -> CaptureResult:
        """Wait for a reading and put its answer together."""
        if reading.there is not None:
            reading.there.synchronize()
        loss_mask = np.concatenate([piece.loss_mask for piece in reading.pieces])
        finite = np.concatenate([part.finite_R.numpy() for part in reading.reduced])
        if not finite.all():
            _raise_not_finite(reading.pieces, int(np.flatnonzero(loss_mask)[np.flatnonzero(~finite)[0]]))
        if self.meter is not None and reading.sample is not None:
            self.meter.count(reading.sample)
        block = to_block(
            reading.reduced,
            loss_mask,
            self.asked.targets,
            hidden={layer: _numbers(rows) for layer, rows in reading.rows.items()},
            state=None if reading.state_NH is None else _numbers(reading.state_NH),
        )
        return CaptureResult(
            block=block, pooled={layer: _numbers(vectors) for layer, vectors in reading.pooled.items()}
        )

    def _reduced(self, batch: PaddedPieces, states: TeacherStates, sample: Sample | None) -> Iterator[ReducedRows]:
        """Logits of a few rows at a time, and what is kept of them."""
        head = self._forward.head
        for start in range(0, max(1, len(batch.positions_R)), self.n_rows):
            chunk = slice(start, start + self.n_rows)
            places_R = batch.positions_R[chunk]
            if head is None:
                states_RH, logits_RV = None, _rows(states.logits_BTV, places_R).float()
            else:
                states_RH = _rows(states.last_BTH, places_R)
                logits_RV = head.logits(states_RH, self._buffer(len(states_RH)))
            logits_RV = logits_RV[:, : self.asked.vocabulary_size].to(self._device)
            labels_R, keys_R = (x[chunk].to(self._device) for x in (batch.labels_R, batch.keys_R))
            reduced = self._reducer.reduce(logits_RV, labels_R, keys_R)
            within_S = batch.compared_S[(batch.compared_S >= start) & (batch.compared_S < start + self.n_rows)] - start
            if sample is not None and len(within_S):
                within_S = _there(within_S, self._device)
                states_SH = None if states_RH is None else states_RH.to(self._device)[within_S]
                sample.add(logits_RV[within_S], _some(reduced, within_S), states_SH)
            yield reduced

    def _buffer(self, n_rows: int) -> Tensor | None:
        """Memory that is used again for every chunk: a CPU spends a tenth of a product on fresh pages."""
        if self._device.type != "cpu":
            return None
        if self._buffer_RV is None or len(self._buffer_RV) < n_rows:
            self._buffer_RV = torch.empty(n_rows, self.asked.vocabulary_size)
        return self._buffer_RV[:n_rows]

    def _means(self, layer: int, states_BTH: Tensor, lengths: Sequence[int]) -> Tensor:
        """The mean over each piece's rows, made narrow; a few pieces at a time, since it is taken in float32."""
        lengths_B = _there(torch.tensor(lengths), states_BTH.device)
        step = max(1, WIDENED_NUMBERS // states_BTH[0].numel())
        means = [
            mean_states(states_BTH[i : i + step], lengths_B[i : i + step]).to(self._device)
            for i in range(0, len(lengths), step)
        ]
        return _host(self._pooled.project(layer, torch.cat(means)))

    def _vectors(self, layer: int, states_BTH: Tensor, batch: PaddedPieces) -> Tensor:
        """Each row's state, made narrow; some rows at a time."""
        step = max(1, WIDENED_NUMBERS // states_BTH.shape[2])
        parts = [
            self._rows.project(layer, _rows(states_BTH, rows).to(self._device))
            for rows in torch.split(batch.rows_N, step)
        ]
        return _host(torch.cat(parts))


def _fitted(role: str, vectors: Sequence[Vector], asked: TargetRequest) -> dict[int, Pca]:
    """The fitted projections among the tables, by layer."""
    found: dict[int, Pca] = {}
    for vector in vectors:
        if isinstance(vector.projection, PcaProjection):
            name = f"pca_{role}_{vector.layer}"
            found[vector.layer] = (torch.from_numpy(asked.tables[name]), torch.from_numpy(asked.tables[f"{name}_mean"]))
    return found


def _there(tensor: Tensor, device: torch.device) -> Tensor:
    """Small numbers on their way to a device, which nobody waits for: from memory that stays in its place."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def _host(tensor: Tensor) -> Tensor:
    """On its way to the host; from a GPU into pinned memory, while other work goes on."""
    return tensor.to("cpu", non_blocking=True)


def _numbers(tensor: Tensor) -> Floats:
    found: Floats = tensor.numpy()
    return found


def _rows(numbers_BTX: Tensor | None, places: Tensor) -> Tensor:
    """Rows of a padded batch by their places in it."""
    assert numbers_BTX is not None
    return numbers_BTX.flatten(0, 1).index_select(0, places.to(numbers_BTX.device))


def _some(reduced: ReducedRows, rows_S: Tensor) -> ReducedRows:
    return ReducedRows(
        n_exact_R=reduced.n_exact_R[rows_S],
        n_draws_R=reduced.n_draws_R[rows_S],
        ids_RK=reduced.ids_RK[rows_S],
        logprobs_RK=reduced.logprobs_RK[rows_S],
        scalars={name: values[rows_S] for name, values in reduced.scalars.items()},
        finite_R=reduced.finite_R[rows_S],
        times_RK=None if reduced.times_RK is None else reduced.times_RK[rows_S],
    )


def _raise_not_finite(pieces: Sequence[Segment], row: int) -> None:
    """Name the first position whose logits mean nothing."""
    for piece in pieces:
        if row < len(piece):
            raise NotFinite(piece, row)
        row -= len(piece)
