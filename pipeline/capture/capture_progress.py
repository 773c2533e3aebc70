"""Where a run is, told to whoever follows it: rates, the share of waiting, what is left.

In: the tally of a worker after every batch, and parts as they are committed. Out: calls of a `Watch`, all from the main
thread.
"""

import time
from queue import SimpleQueue
from typing import final

from kdpipe.cache.writing.writer import CacheWriter
from kdpipe.pipeline.capture.part_capture import CaptureTally
from kdpipe.pipeline.capture.part_queue import WorkerShard
from kdpipe.pipeline.documents.corpus import Corpus
from kdpipe.pipeline.watch import PartsProgress, Watch


@final
class ProgressFollower:
    """Turns tallies into progress; the sizes of documents tell how long the rest will take."""

    def __init__(self, cache: CacheWriter, corpus: Corpus, shard: WorkerShard, watch: Watch) -> None:
        missing, plan = cache.missing(), cache.manifest.plan
        mine = [number for number in missing if number % shard.count == shard.index]
        self._cache, self._watch = cache, watch
        self._rows = sum(corpus.expected_rows(plan.part(number), plan.sequence_length) for number in mine)
        watch.begin(plan.n_parts, plan.n_parts - len(missing), None)
        self._queue: SimpleQueue[int] = SimpleQueue()
        self._bytes = 0
        self._since = time.perf_counter()

    def committed(self, number: int) -> None:
        """Take note of a part; called by the writing thread."""
        self._queue.put(number)

    def tell(self, tally: CaptureTally) -> None:
        """Pass on what has happened."""
        while not self._queue.empty():
            self._tell_part(self._queue.get())
        seconds = tally.making_seconds
        # What others left comes on top of one's own share, and is not foreseen.
        left = max(0.0, self._rows - tally.rows) * seconds / tally.rows if tally.rows else None
        news = PartsProgress(
            positions_done=tally.positions,
            positions_per_second=tally.positions / seconds,
            waiting_share=tally.waiting_seconds / seconds,
            bytes_written=self._bytes,
            seconds_left=left,
        )
        self._watch.progress(news)

    def _tell_part(self, number: int) -> None:
        record, n_bytes = self._cache.record(number)
        now = time.perf_counter()
        self._bytes += n_bytes
        self._watch.part_done(number, record.n_positions, n_bytes, now - self._since)
        self._since = now
