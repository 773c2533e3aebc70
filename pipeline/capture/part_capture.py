"""One part from documents to the disk: tokenize, pack, predict, arrange, pass to the writing thread.

In: a part number. Out: a committed part, and a tally. The next part's documents are tokenized while the teacher
predicts for this one.
"""

import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, final

from kdpipe.cache.writing.writer import CacheWriter
from kdpipe.pipeline.capture.assemble import Group, arrange, batches_in_order
from kdpipe.pipeline.capture.buffer_limits import WINDOW_BATCHES, window_rows
from kdpipe.pipeline.capture.capture_teacher import CaptureTeacher
from kdpipe.pipeline.capture.part_queue import is_free
from kdpipe.pipeline.capture.writer_thread import PartInbox, WritingThread
from kdpipe.pipeline.documents.corpus import Corpus
from kdpipe.pipeline.documents.segments import Segment, pack
from kdpipe.pipeline.targets.request import TargetRequest
from kdpipe.pipeline.teachers import CaptureResult
from kdpipe.schemas.cache_plan import CachePlan


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedPart:
    """The documents of a part as tokens, how they share sequences, and which the teacher reads together."""

    number: int
    segments: list[Segment]
    groups: list[Group]
    batches: list[Group]

    @property
    def n_positions(self) -> int:
        """Rows that are trained on."""
        return sum(int(segment.loss_mask.sum()) for segment in self.segments)


def read_part(
    corpus: Corpus, plan: CachePlan, number: int, batch_tokens: int, window_rows: int | None = None
) -> TokenizedPart:
    """Tokenize and pack the documents of a part; its segments are sorted by length within windows of rows."""
    part = plan.part(number)
    segments = list(corpus.segments(part.split, part.first_document, part.n_documents, plan.sequence_length))
    groups = pack(segments, plan.sequence_length, plan.packed)
    batches = batches_in_order(segments, groups, batch_tokens, window_rows or WINDOW_BATCHES * batch_tokens)
    return TokenizedPart(number=number, segments=segments, groups=groups, batches=batches)


@dataclass(slots=True, kw_only=True)
class CaptureTally:
    """What a worker has done so far; times are those of `time.perf_counter`."""

    started: float
    capture_started: float | None = None
    stopped: float | None = None
    positions: int = 0
    rows: int = 0
    parts: int = 0
    batches_halved: int = 0
    waiting_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Wall time."""
        return self._seconds_since(self.started)

    @property
    def capture_seconds(self) -> float:
        """Wall time since the first part was started."""
        return self._seconds_since(self.started if self.capture_started is None else self.capture_started)

    def _seconds_since(self, start: float) -> float:
        return max((self.stopped or time.perf_counter()) - start, 1e-9)

    def stop(self) -> None:
        """Stop the clock."""
        self.stopped = time.perf_counter()


@final
class PartCapture:
    """Makes parts one after another and updates the tally."""

    def __init__(
        self, cache: CacheWriter, corpus: Corpus, teacher: CaptureTeacher, request: TargetRequest, tally: CaptureTally
    ) -> None:
        self._cache, self._corpus = cache, corpus
        self._teacher, self._request, self._tally = teacher, request, tally

    def make(
        self, numbers: Iterable[int], on_batch: Callable[[CaptureTally], None], on_commit: Callable[[int], None]
    ) -> None:
        """Make parts in order; `on_batch` is called after every batch, `on_commit` by the writing thread."""
        self._tally.capture_started = time.perf_counter()
        writing = WritingThread(self._cache, on_commit)
        try:
            for part in self._read_ahead(numbers):
                if is_free(self._cache, part.number):
                    self._make_part(part, writing, on_batch)
            writing.wait()
        finally:
            writing.close()

    def _read_ahead(self, numbers: Iterable[int]) -> Iterator[TokenizedPart]:
        """Read the documents of the part after this one in the background."""
        with ThreadPoolExecutor(1, thread_name_prefix="reading") as executor:
            ahead: Future[TokenizedPart] | None = None
            plan, batch_tokens = self._cache.manifest.plan, self._teacher.batch_tokens
            window = window_rows(self._request.targets, self._request.hidden, batch_tokens)
            for number in numbers:
                following = executor.submit(read_part, self._corpus, plan, number, batch_tokens, window)
                if ahead is not None:
                    yield ahead.result()
                ahead = following
            if ahead is not None:
                yield ahead.result()

    def _make_part(self, part: TokenizedPart, writing: WritingThread, on_batch: Callable[[CaptureTally], None]) -> None:
        started = time.perf_counter()
        with writing.part(part.number) as inbox:
            results = self._results(part, inbox, on_batch)
            for sequence, block in arrange(part.segments, part.groups, results, self._cache.manifest):
                inbox.add(sequence, block)
            inbox.fidelity = self._teacher.model.fidelity()
            inbox.journal = _journal(part, time.perf_counter() - started)
        self._tally.parts += 1

    def _results(
        self, part: TokenizedPart, inbox: PartInbox, on_batch: Callable[[CaptureTally], None]
    ) -> Iterator[tuple[Group, CaptureResult]]:
        """The result of each batch; rows and waiting are counted."""
        batches = ([part.segments[i] for i in batch] for batch in part.batches)
        results = self._timed(self._teacher.model.predict(batches, self._request))
        for batch, result in zip(part.batches, results, strict=True):
            self._tally.rows += sum(len(part.segments[i]) for i in batch)
            self._tally.positions += sum(int(part.segments[i].loss_mask.sum()) for i in batch)
            self._tally.batches_halved += result.halved
            inbox.batches_halved += result.halved
            yield batch, result
            on_batch(self._tally)

    def _timed(self, results: Iterator[CaptureResult]) -> Iterator[CaptureResult]:
        """The same results; the time spent waiting for them is counted."""
        while True:
            before = time.perf_counter()
            result = next(results, None)
            self._tally.waiting_seconds += time.perf_counter() - before
            if result is None:
                return
            yield result


def _journal(part: TokenizedPart, seconds: float) -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "positions": part.n_positions,
        "seconds": round(seconds, 3),
        "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
