"""`LogitReader`: a few segments through the model on its device, and their targets assembled on the host.

In: segments. Out: a `PendingReading` that is running, then its `CaptureResult`.
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
from kdpipe.pipeline.teachers.padded import PaddedSegments, pad
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.targets import PcaProjection, Vector

# Bytes of the float32 logits that exist at a time: enough rows for a fast product (on a CPU, 512 of 32,000 logits take
# 0.95 of the time of 256), few enough to save memory.
CPU_LOGITS_BYTES, GPU_LOGITS_BYTES = 64 << 20, 512 << 20
MIN_ROWS, MAX_ROWS = 64, 4096
# Numbers of states that are converted to float32 at a time.
WIDENED_NUMBERS = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingReading:
    """Segments being read: copies to the host, and the event after which they are complete."""

    segments: Sequence[Segment]
    reduced: list[ReducedRows]
    pooled: dict[int, Tensor]
    rows: dict[int, Tensor]
    state_NH: Tensor | None
    sample: Sample | None
    there: torch.cuda.Event | None


def logits_bytes(device: torch.device) -> int:
    """Bytes of logits that may exist at a time."""
    return CPU_LOGITS_BYTES if device.type == "cpu" else GPU_LOGITS_BYTES


class NotFinite(Exception):
    """A position whose logits are not finite."""

    def __init__(self, segment: Segment, row: int) -> None:
        super().__init__(f"row {row} of document {segment.document}")
        self.segment, self.row = segment, row


class LogitReader:
    """Reads for one request; `n_rows` rows have logits at a time, fewer where memory is short."""

    def __init__(self, forward: Forward, request: TargetRequest) -> None:
        device, hidden = forward.device_of_logits, request.hidden
        self._forward = forward
        self.request = request
        starts_word = None if request.starts_word is None else torch.from_numpy(request.starts_word)
        self._device = device
        self._reducer = Reducer(request, device, starts_word)
        self._pooled = Projector(hidden.pooled, forward.shape.widths, device, _fitted("pooled", hidden.pooled, request))
        self._rows = Projector(hidden.rows, forward.shape.widths, device, _fitted("rows", hidden.rows, request))
        self._layers = frozenset((*self._pooled.layers, *self._rows.layers))
        self._keeps_state = request.targets.keep.state_width > 0
        if self._keeps_state and forward.head is None:
            raise ConfigError(
                "targets of kind state need an output head that is one matrix, this teacher has none",
                hint="choose another kind of targets",
            )
        self.meter: FidelityMeter | None = None
        if request.fidelity_every and request.targets.has_entries:
            width = forward.shape.last_width if forward.head is not None else None
            self.meter = FidelityMeter(request, width, device)
        self._buffer_RV: Tensor | None = None
        self.is_short_of_memory = False
        self.n_rows = min(MAX_ROWS, max(MIN_ROWS, logits_bytes(device) // (4 * request.vocabulary_size)))

    def start(self, segments: Sequence[Segment]) -> PendingReading:
        """Read segments; on a GPU this returns before the work is done."""
        request = self.request
        batch = pad(segments, request.seed, request.fidelity_every).to(self._forward.device)
        states = self._forward.read(batch.ids_BT, self._layers)
        sample = self.meter.sample() if self.meter is not None else None
        reduced = [part.to("cpu", non_blocking=True) for part in self._reduced(batch, states, sample)]
        lengths = [len(segment) for segment in segments]
        pooled = {layer: self._means(layer, states.layers[layer], lengths) for layer in self._pooled.layers}
        rows = {layer: self._vectors(layer, states.layers[layer], batch) for layer in self._rows.layers}
        state = _host(_rows(states.last_BTH, batch.rows_N).float()) if self._keeps_state else None
        there = torch.cuda.Event() if self._device.type == "cuda" else None  # type: ignore[no-untyped-call]  # torch
        if there is not None:
            there.record(torch.cuda.current_stream(self._device))
        return PendingReading(
            segments=segments, reduced=reduced, pooled=pooled, rows=rows, state_NH=state, sample=sample, there=there
        )

    def finish(self, reading: PendingReading) -> CaptureResult:
        """Wait for a reading and put its answer together."""
        if reading.there is not None:
            reading.there.synchronize()
        loss_mask = np.concatenate([segment.loss_mask for segment in reading.segments])
        finite = np.concatenate([part.finite_R.numpy() for part in reading.reduced])
        if not finite.all():
            _raise_not_finite(reading.segments, int(np.flatnonzero(loss_mask)[np.flatnonzero(~finite)[0]]))
        if self.meter is not None and reading.sample is not None:
            self.meter.count(reading.sample)
        block = to_block(
            reading.reduced,
            loss_mask,
            self.request.targets,
            hidden={layer: _numbers(rows) for layer, rows in reading.rows.items()},
            state=None if reading.state_NH is None else _numbers(reading.state_NH),
        )
        return CaptureResult(
            block=block, pooled={layer: _numbers(vectors) for layer, vectors in reading.pooled.items()}
        )

    def _reduced(self, batch: PaddedSegments, states: TeacherStates, sample: Sample | None) -> Iterator[ReducedRows]:
        """Compute logits of a few rows at a time and reduce them."""
        head = self._forward.head
        for start in range(0, max(1, len(batch.positions_R)), self.n_rows):
            chunk = slice(start, start + self.n_rows)
            places_R = batch.positions_R[chunk]
            if head is None:
                states_RH, logits_RV = None, _rows(states.logits_BTV, places_R).float()
            else:
                states_RH = _rows(states.last_BTH, places_R)
                logits_RV = head.logits(states_RH, self._buffer(len(states_RH)))
            logits_RV = logits_RV[:, : self.request.vocabulary_size].to(self._device)
            labels_R, keys_R = (x[chunk].to(self._device) for x in (batch.labels_R, batch.keys_R))
            reduced = self._reducer.reduce(logits_RV, labels_R, keys_R)
            within_S = batch.compared_S[(batch.compared_S >= start) & (batch.compared_S < start + self.n_rows)] - start
            if sample is not None and len(within_S):
                within_S = _to_device(within_S, self._device)
                states_SH = None if states_RH is None else states_RH.to(self._device)[within_S]
                sample.add(logits_RV[within_S], _selected_rows(reduced, within_S), states_SH)
            yield reduced

    def _buffer(self, n_rows: int) -> Tensor | None:
        """Memory reused for every chunk: fresh pages cost a CPU a tenth of a product."""
        if self._device.type != "cpu":
            return None
        if self._buffer_RV is None or len(self._buffer_RV) < n_rows:
            self._buffer_RV = torch.empty(n_rows, self.request.vocabulary_size)
        return self._buffer_RV[:n_rows]

    def _means(self, layer: int, states_BTH: Tensor, lengths: Sequence[int]) -> Tensor:
        """The projected mean over each segment's rows; a few segments at a time, since it is computed in float32."""
        lengths_B = _to_device(torch.tensor(lengths), states_BTH.device)
        step = max(1, WIDENED_NUMBERS // states_BTH[0].numel())
        means = [
            mean_states(states_BTH[i : i + step], lengths_B[i : i + step]).to(self._device)
            for i in range(0, len(lengths), step)
        ]
        return _host(self._pooled.project(layer, torch.cat(means)))

    def _vectors(self, layer: int, states_BTH: Tensor, batch: PaddedSegments) -> Tensor:
        """Each row's projected state; some rows at a time."""
        step = max(1, WIDENED_NUMBERS // states_BTH.shape[2])
        parts = [
            self._rows.project(layer, _rows(states_BTH, rows).to(self._device))
            for rows in torch.split(batch.rows_N, step)
        ]
        return _host(torch.cat(parts))


def _fitted(role: str, vectors: Sequence[Vector], request: TargetRequest) -> dict[int, Pca]:
    """The fitted projections among the tables, by layer."""
    fitted: dict[int, Pca] = {}
    for vector in vectors:
        if isinstance(vector.projection, PcaProjection):
            name = f"pca_{role}_{vector.layer}"
            fitted[vector.layer] = (
                torch.from_numpy(request.tables[name]),
                torch.from_numpy(request.tables[f"{name}_mean"]),
            )
    return fitted


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a small tensor to a device without waiting, from pinned memory."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def _host(tensor: Tensor) -> Tensor:
    """Copy to the host; from a GPU into pinned memory without waiting."""
    return tensor.to("cpu", non_blocking=True)


def _numbers(tensor: Tensor) -> Floats:
    values: Floats = tensor.numpy()
    return values


def _rows(numbers_BTX: Tensor | None, places: Tensor) -> Tensor:
    """Rows of a padded batch by their places in it."""
    assert numbers_BTX is not None
    return numbers_BTX.flatten(0, 1).index_select(0, places.to(numbers_BTX.device))


def _selected_rows(reduced: ReducedRows, rows_S: Tensor) -> ReducedRows:
    return ReducedRows(
        n_exact_R=reduced.n_exact_R[rows_S],
        n_draws_R=reduced.n_draws_R[rows_S],
        ids_RK=reduced.ids_RK[rows_S],
        logprobs_RK=reduced.logprobs_RK[rows_S],
        scalars={name: values[rows_S] for name, values in reduced.scalars.items()},
        finite_R=reduced.finite_R[rows_S],
        times_RK=None if reduced.times_RK is None else reduced.times_RK[rows_S],
    )


def _raise_not_finite(segments: Sequence[Segment], row: int) -> None:
    """Raise with the first position whose logits are not finite."""
    for segment in segments:
        if row < len(segment):
            raise NotFinite(segment, row)
        row -= len(segment)
