"""`TransformersTeacher`: a transformers model in this process that predicts batch after batch.

In: segments in batches. Out: a `CaptureResult` each. On a GPU the next batch is running while the result of the last
one is copied to the host. A batch that does not fit into memory is halved, repeatedly if need be; the result counts
that.
"""

import gc
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from kdpipe.cache.format.blocks import join
from kdpipe.pipeline.documents.segments import Segment
from kdpipe.pipeline.models.memory import is_out_of_memory
from kdpipe.pipeline.models.model_info import check_vocabulary
from kdpipe.pipeline.targets.request import TargetRequest
from kdpipe.pipeline.teachers import CaptureResult, Table
from kdpipe.pipeline.teachers.forward import Forward
from kdpipe.pipeline.teachers.load_teacher import LoadedTeacher
from kdpipe.pipeline.teachers.padded import pad, padded_tokens, readable
from kdpipe.pipeline.teachers.reading import MIN_ROWS, LogitReader, NotFinite, PendingReading, logits_bytes
from kdpipe.schemas import manifest
from kdpipe.schemas.choices import DtypeName
from kdpipe.schemas.errors import KdpipeError
from kdpipe.schemas.part import Fidelity
from kdpipe.schemas.target_kinds import OutputHead

log = logging.getLogger(__name__)
Result = TypeVar("Result")
OWN_LOGITS = "logits come from the model as a whole: its output head was not recognized"


@dataclass(slots=True, kw_only=True)
class BatchResult:
    """The readings of a batch, and how often it was halved for lack of memory."""

    readings: list[PendingReading]
    halved: int


class TransformersTeacher:
    """Implements `Teacher` with a loaded model."""

    def __init__(self, loaded: LoadedTeacher, vocabulary_size: int) -> None:
        check_vocabulary(loaded.shape, vocabulary_size)
        self._loaded = loaded
        self._vocabulary_size = vocabulary_size
        self._lag = 0 if loaded.device.type == "cpu" else 1
        self._too_many_tokens: int | None = None
        self._reader: LogitReader | None = None
        self.forward = Forward(loaded, vocabulary_size)
        if self.forward.head is None:
            log.warning("%s: %s, which takes more memory", loaded.shape.name, OWN_LOGITS)

    @property
    def record(self) -> manifest.TeacherRecord:
        record = self._loaded.record
        return (
            record
            if self.forward.head is not None
            else record.model_copy(update={"notes": (*record.notes, OWN_LOGITS)})
        )

    @property
    def output_head(self) -> OutputHead | None:
        head = self.forward.head
        if head is None or not head.is_plain:
            return None
        dtypes: dict[torch.dtype, DtypeName] = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
        return OutputHead(
            width=self._loaded.shape.last_width,
            dtype=dtypes.get(head.weight_VH.dtype, "float32"),
            bias=head.bias_V is not None,
            soft_cap=head.soft_cap,
            logit_scale=head.scale,
        )

    def head_tables(self) -> dict[str, Table]:
        head = self.forward.head
        assert head is not None and head.is_plain, "targets of kind state need a plain output head"
        tables: dict[str, Table] = {"output_head": head.weight_VH.float().cpu().numpy()}
        if head.bias_V is not None:
            tables["output_bias"] = head.bias_V.float().cpu().numpy()
        return tables

    def predict(self, batches: Iterable[Sequence[Segment]], request: TargetRequest) -> Iterator[CaptureResult]:
        """Answer batch after batch, in their order."""
        reader = self._reader
        if reader is None or reader.request is not request:
            reader = self._reader = LogitReader(self.forward, request)
        under_way: deque[BatchResult] = deque()
        for batch in batches:
            under_way.append(self._read(reader, batch))
            if len(under_way) > self._lag:
                yield self._result(reader, under_way.popleft())
        while under_way:
            yield self._result(reader, under_way.popleft())
        if self._loaded.placement.kind != "one":
            # A model spread over devices caches too much memory for the next part.
            _free(self.forward.device)

    def bare_seconds(self, batches: Iterable[Sequence[Segment]]) -> float | None:
        """Seconds of the model's own forward pass over the same batches, with logits.

        None where all the logits of a batch do not fit into memory, which caching does not need.
        """
        started = time.perf_counter()
        with torch.inference_mode():
            for segments in batches:
                for group in readable(segments, self._loaded.shape, self._vocabulary_size):
                    ids_BT = pad(group, 0).ids_BT.to(self.forward.device)
                    if _unless_out_of_memory(partial(self.forward.own_logits, ids_BT)) is None:
                        _free(self.forward.device)
                        return None
        if self.forward.device.type == "cuda":
            torch.cuda.synchronize(self.forward.device)
        return time.perf_counter() - started

    def fidelity(self) -> Fidelity | None:
        """How near the answers since the last call come to the full distributions."""
        reader = self._reader
        return None if reader is None or reader.meter is None else reader.meter.result()

    def _read(self, reader: LogitReader, segments: Sequence[Segment]) -> BatchResult:
        batch = BatchResult(readings=[], halved=0)
        with torch.inference_mode():
            for group in readable(segments, self._loaded.shape, self._vocabulary_size):
                for small in self._batches_within_memory(group):
                    self._read_or_halve(reader, small, batch)
        if reader.is_short_of_memory and not batch.halved:
            # Fewer rows at a time may change the last bits of a product, as halving does.
            batch.halved = 1
        return batch

    def _batches_within_memory(self, segments: Sequence[Segment]) -> list[Sequence[Segment]]:
        """Cut a batch where the model computes all logits itself, to bound their memory."""
        if self.forward.head is not None:
            return [segments]
        row_bytes = self._loaded.shape.vocabulary_size * self._loaded.dtype.itemsize
        longest = max(len(segment) for segment in segments)
        step = max(1, logits_bytes(self.forward.device) // row_bytes // longest)
        return [segments[i : i + step] for i in range(0, len(segments), step)]

    def _read_or_halve(self, reader: LogitReader, segments: Sequence[Segment], into: BatchResult) -> None:
        """Read segments as one batch if they fit into memory, else in halves."""
        n_tokens = padded_tokens(segments)
        known = self._too_many_tokens is not None and n_tokens >= self._too_many_tokens and len(segments) > 1
        reading = None if known else _unless_out_of_memory(lambda: reader.start(segments))
        if reading is not None:
            into.readings.append(reading)
            return
        into.halved += 1
        if not known:
            self._remember(n_tokens)
        if len(segments) > 1:
            half = (len(segments) + 1) // 2
            self._read_or_halve(reader, segments[:half], into)
            self._read_or_halve(reader, segments[half:], into)
        elif reader.n_rows > MIN_ROWS:
            reader.n_rows, reader.is_short_of_memory = max(MIN_ROWS, reader.n_rows // 4), True
            self._read_or_halve(reader, segments, into)
        else:
            raise KdpipeError(
                f"document {segments[0].document:,} of {segments[0].split}, {n_tokens:,} tokens, does not fit into the "
                f"memory of {self.forward.device}",
                hint="shorten sequences (--seq-len), quantize the teacher, or use a device with more memory",
            )

    def _remember(self, n_tokens: int) -> None:
        """Record that batches of this size do not fit, so that they are not tried again."""
        if self._too_many_tokens is None:
            log.warning(
                "out of memory at a batch of %s tokens: halving batches of this size from now on", f"{n_tokens:,}"
            )
        self._too_many_tokens = min(n_tokens, self._too_many_tokens or n_tokens)
        _free(self.forward.device)

    def _result(self, reader: LogitReader, batch: BatchResult) -> CaptureResult:
        try:
            with torch.inference_mode():
                results = [reader.finish(reading) for reading in batch.readings]
        except NotFinite as error:
            raise self._located_error(error) from None
        layers = results[0].pooled
        return CaptureResult(
            block=join([result.block for result in results]),
            pooled={layer: np.concatenate([result.pooled[layer] for result in results]) for layer in layers},
            halved=batch.halved,
        )

    def _located_error(self, error: NotFinite) -> KdpipeError:
        """Read a document again, alone, to find the first layer with values that are not finite.

        One of them spoils earlier positions too: attention multiplies it with 0, which gives NaN.
        """
        segment, row = error.segment, error.row
        with torch.inference_mode():
            ids_BT = torch.from_numpy(segment.tokens.astype(np.int64))[None].to(self.forward.device)
            odd = [
                (~out.isfinite()).any(-1)[0].nonzero().flatten().tolist() for out in self.forward.every_layer(ids_BT)
            ]
        layer = next((i for i, rows in enumerate(odd) if rows), None)
        if layer is None:
            what = "read alone they are finite"
        elif layer == len(odd) - 1:
            what = "all layers have finite outputs, the output head does not"
        else:
            row = odd[layer][0]
            layer_name = "the embeddings, before layer 1" if layer == 0 else f"layer {layer}"
            what = f"the first output that is not finite is of {layer_name} of {len(odd) - 2}"
        name = self._loaded.record.dtype
        overflow = "float16 overflows above 65,504: give --dtype bfloat16 or float32"
        return KdpipeError(
            f"the teacher's logits of document {segment.document:,} ({segment.split}) are not finite at its token "
            f"{segment.offset + row:,}: {what}",
            hint=overflow if name == "float16" else "check the weights, or give --dtype float32",
        )


def _unless_out_of_memory(work: Callable[[], Result]) -> Result | None:
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            return None
        raise


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
