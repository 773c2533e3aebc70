"""`LocalTeacher`: a model of transformers in this process, which answers batch after batch.

In: pieces in batches. Out: an `CaptureResult` each. On a GPU the next batch is under way while the last one's answer is
taken to the host and put together there. A batch that does not fit into memory is halved, and halved again; the answer
says how often.
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
from kdpipe.pipeline.targets.target_spec import OutputHead
from kdpipe.pipeline.teachers import CaptureResult
from kdpipe.pipeline.teachers.forward import Forward
from kdpipe.pipeline.teachers.load_teacher import LoadedTeacher
from kdpipe.pipeline.teachers.padded import pad, padded_tokens, readable
from kdpipe.pipeline.teachers.reading import MIN_ROWS, LogitReader, NotFinite, PendingReading, logits_bytes
from kdpipe.schemas import manifest
from kdpipe.schemas.choices import DtypeName
from kdpipe.schemas.errors import KdpipeError
from kdpipe.schemas.part import Fidelity

log = logging.getLogger(__name__)
Result = TypeVar("Result")
OWN_LOGITS = "logits are taken from the model whole: its output head could not be told apart"


@dataclass(slots=True, kw_only=True)
class BatchResult:
    """The readings that a batch came to, and how often it was cut for lack of memory."""

    readings: list[PendingReading]
    halved: int


class LocalTeacher:
    """Implements `Teacher` with a model that is loaded."""

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
    def facts(self) -> manifest.TeacherRecord:
        """Who it is, for the manifest."""
        found = self._loaded.facts
        return (
            found if self.forward.head is not None else found.model_copy(update={"notes": (*found.notes, OWN_LOGITS)})
        )

    @property
    def output_head(self) -> OutputHead | None:
        """What targets of kind state must know of the output head; its numbers are `forward.head`'s."""
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

    def answers(self, batches: Iterable[Sequence[Segment]], asked: TargetRequest) -> Iterator[CaptureResult]:
        """Answer batch after batch, in their order."""
        reader = self._reader
        if reader is None or reader.asked is not asked:
            reader = self._reader = LogitReader(self.forward, asked)
        under_way: deque[BatchResult] = deque()
        for batch in batches:
            under_way.append(self._read(reader, batch))
            if len(under_way) > self._lag:
                yield self._answer(reader, under_way.popleft())
        while under_way:
            yield self._answer(reader, under_way.popleft())
        if self._loaded.placement.kind != "one":
            # What a spread model leaves lying about is more than the next part can do without.
            _free(self.forward.device)

    def bare_seconds(self, batches: Iterable[Sequence[Segment]]) -> float | None:
        """How long the model's own forward pass over the same batches takes, logits and all: what caching is up to.

        None where there is no memory for all the logits of a batch, which caching does without.
        """
        started = time.perf_counter()
        with torch.inference_mode():
            for pieces in batches:
                for group in readable(pieces, self._loaded.shape, self._vocabulary_size):
                    ids_BT = pad(group, 0).ids_BT.to(self.forward.device)
                    if _unless_out_of_memory(partial(self.forward.own_logits, ids_BT)) is None:
                        _free(self.forward.device)
                        return None
        if self.forward.device.type == "cuda":
            torch.cuda.synchronize(self.forward.device)
        return time.perf_counter() - started

    def measured(self) -> Fidelity | None:
        """How near the answers since the last call come to the full distributions."""
        reader = self._reader
        return None if reader is None or reader.meter is None else reader.meter.result()

    def _read(self, reader: LogitReader, pieces: Sequence[Segment]) -> BatchResult:
        batch = BatchResult(readings=[], halved=0)
        with torch.inference_mode():
            for group in readable(pieces, self._loaded.shape, self._vocabulary_size):
                for small in self._affordable(group):
                    self._read_or_halve(reader, small, batch)
        if reader.is_short_of_memory and not batch.halved:
            # Fewer rows at a time may change the last bits of a product, as half a batch does.
            batch.halved = 1
        return batch

    def _affordable(self, pieces: Sequence[Segment]) -> list[Sequence[Segment]]:
        """Cut a batch where the model makes all logits itself, so that they stay few at a time."""
        if self.forward.head is not None:
            return [pieces]
        row_bytes = self._loaded.shape.vocabulary_size * self._loaded.dtype.itemsize
        longest = max(len(piece) for piece in pieces)
        step = max(1, logits_bytes(self.forward.device) // row_bytes // longest)
        return [pieces[i : i + step] for i in range(0, len(pieces), step)]

    def _read_or_halve(self, reader: LogitReader, pieces: Sequence[Segment], into: BatchResult) -> None:
        """Read pieces at once if they fit into memory, else half of them after the other."""
        n_tokens = padded_tokens(pieces)
        known = self._too_many_tokens is not None and n_tokens >= self._too_many_tokens and len(pieces) > 1
        reading = None if known else _unless_out_of_memory(lambda: reader.start(pieces))
        if reading is not None:
            into.readings.append(reading)
            return
        into.halved += 1
        if not known:
            self._remember(n_tokens)
        if len(pieces) > 1:
            half = (len(pieces) + 1) // 2
            self._read_or_halve(reader, pieces[:half], into)
            self._read_or_halve(reader, pieces[half:], into)
        elif reader.n_rows > MIN_ROWS:
            reader.n_rows, reader.is_short_of_memory = max(MIN_ROWS, reader.n_rows // 4), True
            self._read_or_halve(reader, pieces, into)
        else:
            raise KdpipeError(
                f"document {pieces[0].document:,} of {pieces[0].split}, {n_tokens:,} tokens, does not fit into the "
                f"memory of {self.forward.device}",
                hint="shorten sequences (--seq-len), quantize the teacher, or use a device with more memory",
            )

    def _remember(self, n_tokens: int) -> None:
        """Batches of a size that did not fit are not tried again."""
        if self._too_many_tokens is None:
            log.warning("out of memory at a batch of %s tokens: such batches are halved from here on", f"{n_tokens:,}")
        self._too_many_tokens = min(n_tokens, self._too_many_tokens or n_tokens)
        _free(self.forward.device)

    def _answer(self, reader: LogitReader, batch: BatchResult) -> CaptureResult:
        try:
            with torch.inference_mode():
                found = [reader.finish(reading) for reading in batch.readings]
        except NotFinite as error:
            raise self._explained(error) from None
        layers = found[0].pooled
        return CaptureResult(
            block=join([answer.block for answer in found]),
            pooled={layer: np.concatenate([answer.pooled[layer] for answer in found]) for layer in layers},
            halved=batch.halved,
        )

    def _explained(self, error: NotFinite) -> KdpipeError:
        """Read a document again, alone, to find out where its numbers stop to be finite.

        One that is not spoils what comes before it too: attention multiplies it with 0, which is no number either.
        """
        piece, row = error.piece, error.row
        with torch.inference_mode():
            ids_BT = torch.from_numpy(piece.tokens.astype(np.int64))[None].to(self.forward.device)
            odd = [
                (~out.isfinite()).any(-1)[0].nonzero().flatten().tolist() for out in self.forward.every_layer(ids_BT)
            ]
        layer = next((i for i, rows in enumerate(odd) if rows), None)
        if layer is None:
            what = "read alone it gives finite ones"
        elif layer == len(odd) - 1:
            what = "all layers' outputs are finite, those of the output head are not"
        else:
            row = odd[layer][0]
            named = "the embeddings, before layer 1" if layer == 0 else f"layer {layer}"
            what = f"the first output that is not finite is that of {named} of {len(odd) - 2}"
        name = self._loaded.facts.dtype
        overflow = "float16 overflows beyond 65,504: give --dtype bfloat16 or float32"
        return KdpipeError(
            f"the teacher's logits of document {piece.document:,} ({piece.split}) are not finite at its token "
            f"{piece.offset + row:,}: {what}",
            hint=overflow if name == "float16" else "are the weights whole? try --dtype float32",
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
