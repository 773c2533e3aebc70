"""Progress of a run: rates, the share of time spent waiting, the time left.

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
    """Turns tallies into progress; the time left is estimated from the sizes of documents."""

    def __init__(self, cache: CacheWriter, corpus: Corpus, shard: WorkerShard, watch: Watch) -> None:
        missing, plan = cache.missing(), cache.manifest.plan
        own = [number for number in missing if number % shard.count == shard.index]
        self._cache, self._watch = cache, watch
        self._rows = sum(corpus.expected_rows(plan.part(number), plan.sequence_length) for number in own)
        watch.begin(plan.n_parts, plan.n_parts - len(missing), None)
        self._committed: SimpleQueue[int] = SimpleQueue()
        self._bytes = 0
        self._since = time.perf_counter()

    def committed(self, number: int) -> None:
        """Record that a part is committed; called by the writing thread."""
        self._committed.put(number)

    def update(self, tally: CaptureTally) -> None:
        """Report progress, and the parts committed since the last call."""
        while not self._committed.empty():
            self._report_part(self._committed.get())
        seconds = tally.capture_seconds
        # Parts taken over from other workers come on top and are not included.
        left = max(0.0, self._rows - tally.rows) * seconds / tally.rows if tally.rows else None
        news = PartsProgress(
            positions_done=tally.positions,
            positions_per_second=tally.positions / seconds,
            waiting_share=tally.waiting_seconds / seconds,
            bytes_written=self._bytes,
            seconds_left=left,
        )
        self._watch.progress(news)

    def _report_part(self, number: int) -> None:
        record, n_bytes = self._cache.record(number)
        now = time.perf_counter()
        self._bytes += n_bytes
        self._watch.part_done(number, record.n_positions, n_bytes, now - self._since)
        self._since = now
