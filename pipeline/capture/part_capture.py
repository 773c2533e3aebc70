"""One part from documents to the disk: read, packed, asked, arranged, handed to the writing thread.

In: a part number. Out: a committed part, and what it took. The next part's documents are tokenized while the teacher
answers for this one.
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
    pieces: list[Segment]
    groups: list[Group]
    batches: list[Group]

    @property
    def n_positions(self) -> int:
        """Rows that are to be learnt."""
        return sum(int(piece.loss_mask.sum()) for piece in self.pieces)


def read_part(
    corpus: Corpus, plan: CachePlan, number: int, batch_tokens: int, window_rows: int | None = None
) -> TokenizedPart:
    """Tokenize and pack the documents of a part; its pieces are sorted within so many rows, or within many batches."""
    part = plan.part(number)
    pieces = list(corpus.segments(part.split, part.first_document, part.n_documents, plan.sequence_length))
    groups = pack(pieces, plan.sequence_length, plan.packed)
    batches = batches_in_order(pieces, groups, batch_tokens, window_rows or WINDOW_BATCHES * batch_tokens)
    return TokenizedPart(number=number, pieces=pieces, groups=groups, batches=batches)


@dataclass(slots=True, kw_only=True)
class CaptureTally:
    """What a worker has done so far; times are of the clock `time.perf_counter`."""

    started: float
    making_since: float | None = None
    stopped: float | None = None
    positions: int = 0
    rows: int = 0
    parts: int = 0
    batches_halved: int = 0
    waiting_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Wall time."""
        return self._since(self.started)

    @property
    def making_seconds(self) -> float:
        """Wall time since the first part was begun."""
        return self._since(self.started if self.making_since is None else self.making_since)

    def _since(self, start: float) -> float:
        return max((self.stopped or time.perf_counter()) - start, 1e-9)

    def stop(self) -> None:
        """Let the clock stand still."""
        self.stopped = time.perf_counter()


@final
class PartMaker:
    """Makes parts one after another, and keeps the tally."""

    def __init__(
        self, cache: CacheWriter, corpus: Corpus, speaker: CaptureTeacher, asked: TargetRequest, tally: CaptureTally
    ) -> None:
        self._cache, self._corpus = cache, corpus
        self._speaker, self._asked, self._tally = speaker, asked, tally

    def make(
        self, numbers: Iterable[int], told: Callable[[CaptureTally], None], committed: Callable[[int], None]
    ) -> None:
        """Make parts in their order; `told` is called after every batch."""
        self._tally.making_since = time.perf_counter()
        writing = WritingThread(self._cache, committed)
        try:
            for part in self._read_ahead(numbers):
                if is_free(self._cache, part.number):
                    self._make_one(part, writing, told)
            writing.wait()
        finally:
            writing.close()

    def _read_ahead(self, numbers: Iterable[int]) -> Iterator[TokenizedPart]:
        """Read the documents of the part after this one in the background."""
        with ThreadPoolExecutor(1, thread_name_prefix="reading") as executor:
            ahead: Future[TokenizedPart] | None = None
            plan, batch_tokens = self._cache.manifest.plan, self._speaker.batch_tokens
            window = window_rows(self._asked.targets, self._asked.hidden, batch_tokens)
            for number in numbers:
                coming = executor.submit(read_part, self._corpus, plan, number, batch_tokens, window)
                if ahead is not None:
                    yield ahead.result()
                ahead = coming
            if ahead is not None:
                yield ahead.result()

    def _make_one(self, part: TokenizedPart, writing: WritingThread, told: Callable[[CaptureTally], None]) -> None:
        began = time.perf_counter()
        with writing.part(part.number) as inbox:
            answered = self._answered(part, inbox, told)
            for sequence, block in arrange(part.pieces, part.groups, answered, self._cache.manifest):
                inbox.add(sequence, block)
            inbox.fidelity = self._speaker.measured()
            inbox.journal = _journal(part, time.perf_counter() - began)
        self._tally.parts += 1

    def _answered(
        self, part: TokenizedPart, inbox: PartInbox, told: Callable[[CaptureTally], None]
    ) -> Iterator[tuple[Group, CaptureResult]]:
        """Answers beside their batches, with a look at the clock."""
        batches = ([part.pieces[i] for i in batch] for batch in part.batches)
        answers = self._timed(self._speaker.answers(batches, self._asked))
        for batch, answer in zip(part.batches, answers, strict=True):
            self._tally.rows += sum(len(part.pieces[i]) for i in batch)
            self._tally.positions += sum(int(part.pieces[i].loss_mask.sum()) for i in batch)
            self._tally.batches_halved += answer.halved
            inbox.batches_halved += answer.halved
            yield batch, answer
            told(self._tally)

    def _timed(self, answers: Iterator[CaptureResult]) -> Iterator[CaptureResult]:
        """The same answers; waiting for them is counted."""
        while True:
            before = time.perf_counter()
            answer = next(answers, None)
            self._tally.waiting_seconds += time.perf_counter() - before
            if answer is None:
                return
            yield answer


def _journal(part: TokenizedPart, seconds: float) -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "positions": part.n_positions,
        "seconds": round(seconds, 3),
        "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
