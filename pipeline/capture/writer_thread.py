"""A thread that writes parts, so that encoding and disk writes overlap the teacher's next batch.

In: sequences with their targets, one part after another. Out: committed parts, each with its journal. The queue is
short: the faster side waits for the other.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from queue import Empty, Full, Queue
from typing import Any, Literal, final

from kdpipe.cache.format.rows import Block, Sequence
from kdpipe.cache.writing.writer import CacheWriter
from kdpipe.pipeline.capture.buffer_limits import waiting_sequences
from kdpipe.schemas.part import Fidelity

POLL_SECONDS = 0.2
Item = tuple[Sequence, Block] | Literal["end", "drop"]


class _PartDropped(Exception):
    """The current part is dropped."""


@final
class PartInbox:
    """The queue of one part: sequences go in, the writing thread takes them out."""

    def __init__(self, most: int) -> None:
        self.fidelity: Fidelity | None = None
        self.journal: dict[str, Any] = {}
        self.batches_halved = 0
        self.items: Queue[Item] = Queue(most)
        self.future: Future[None] | None = None

    def add(self, sequence: Sequence, block: Block) -> None:
        """Queue a sequence; errors of the writing thread are raised here."""
        self.put((sequence, block))

    def put(self, item: Item) -> None:
        assert self.future is not None
        while True:
            if self.future.done():
                self.future.result()
            try:
                return self.items.put(item, timeout=POLL_SECONDS)
            except Full:
                continue

    def drop(self) -> None:
        """Drop the part and what is queued for it."""
        assert self.future is not None
        while not self.future.done():
            with suppress(Empty):
                while True:
                    self.items.get_nowait()
            with suppress(Full):
                self.items.put("drop", timeout=POLL_SECONDS)
            with suppress(BaseException):
                self.future.result(timeout=POLL_SECONDS)


@final
class WritingThread:
    """Writes the parts of one worker in order."""

    def __init__(self, cache: CacheWriter, committed: Callable[[int], None]) -> None:
        self._cache, self._committed = cache, committed
        stated = cache.manifest
        self._most = waiting_sequences(stated.targets, stated.hidden, stated.plan.sequence_length)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="writing")
        self._queued: list[Future[None]] = []
        self._is_closing = False

    @contextmanager
    def part(self, number: int) -> Iterator[PartInbox]:
        """Queue the sequences of a part; at the end it and the one before may still be being written."""
        self._finish(but=1)
        inbox = PartInbox(self._most)
        inbox.future = self._executor.submit(self._write, number, inbox)
        try:
            yield inbox
            inbox.put("end")
        except BaseException:
            inbox.drop()
            raise
        self._queued.append(inbox.future)

    def wait(self) -> None:
        """Wait until every queued part is committed."""
        self._finish(but=0)

    def _finish(self, but: int) -> None:
        """Wait for all parts but the last few, and raise their errors."""
        while self._queued and (len(self._queued) > but or self._queued[0].done()):
            self._queued.pop(0).result()

    def close(self) -> None:
        """End the thread; a part that is not queued to its end is dropped."""
        self._is_closing = True
        self._executor.shutdown()

    def _next(self, inbox: PartInbox) -> Item:
        """The next item; after an interrupt there may never be one."""
        while True:
            try:
                return inbox.items.get(timeout=POLL_SECONDS)
            except Empty:
                if self._is_closing:
                    return "drop"

    def _write(self, number: int, inbox: PartInbox) -> None:
        with self._cache.part(number) as part:
            while (item := self._next(inbox)) != "end":
                if item == "drop":
                    raise _PartDropped
                part.add(*item)
            part.fidelity, part.batches_halved = inbox.fidelity, inbox.batches_halved
        self._cache.write_journal(number, inbox.journal)
        self._committed(number)
