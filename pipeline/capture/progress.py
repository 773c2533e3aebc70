"""Where a run is, told to whoever follows it: rates, the share of waiting, what is left.

In: the tally of a worker after every batch, and parts as they are committed. Out: calls of a `Watch`, all from the
main thread. Before it: `parts.py`. After it: `cli/progress.py`.
"""

import time
from queue import SimpleQueue
from typing import final

from kdpipe.cache.writer import CacheWriter
from kdpipe.pipeline.capture.parts import Tally
from kdpipe.pipeline.capture.turns import Shard
from kdpipe.pipeline.watch import Watch


@final
class Follower:
    """Turns tallies into progress; parts are about equally large, so one tells how long the others will take."""

    def __init__(self, cache: CacheWriter, shard: Shard, watch: Watch) -> None:
        missing = cache.missing()
        self._cache, self._watch = cache, watch
        self._n_mine = sum(number % shard.count == shard.index for number in missing)
        n_parts = cache.manifest.plan.n_parts
        watch.begin(n_parts, n_parts - len(missing), None)
        self._queue: SimpleQueue[int] = SimpleQueue()
        self._n_done = self._bytes = self._positions = 0
        self._since = time.perf_counter()

    def committed(self, number: int) -> None:
        """Take note of a part; called by the writing thread."""
        self._queue.put(number)

    def tell(self, tally: Tally) -> None:
        """Pass on what has happened."""
        while not self._queue.empty():
            self._tell_part(self._queue.get())
        rate = tally.positions / tally.making_seconds
        # What lies on the disk is behind what the teacher has said by a part at most.
        mean = self._positions / self._n_done if self._n_done else 0.0
        left = (mean * self._n_mine - tally.positions) / rate if mean and rate else None
        share = tally.waiting_seconds / tally.making_seconds
        self._watch.progress(tally.positions, rate, share, self._bytes, left if left is None else max(left, 0.0))

    def _tell_part(self, number: int) -> None:
        record, n_bytes = self._cache.record(number)
        now = time.perf_counter()
        self._n_done += 1
        self._bytes += n_bytes
        self._positions += record.n_positions
        self._watch.part_done(number, record.n_positions, n_bytes, now - self._since)
        self._since = now
