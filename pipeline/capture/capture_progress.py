"""Progress of cache-teacher: positions, the share of time spent waiting, the time left.

In: the tally of a worker after every batch, and parts as they are committed. Out: updates, all from the main thread.
"""

from dataclasses import replace
from queue import SimpleQueue
from typing import final

from kdpipe.cache.writing.writer import CacheWriter
from kdpipe.pipeline.capture.part_capture import CaptureTally
from kdpipe.pipeline.capture.part_queue import WorkerShard
from kdpipe.pipeline.documents.corpus import Corpus
from kdpipe.schemas.progress import Progress, Task, TaskUpdate

# A fact: the share of the time spent waiting for the teacher.
TEACHER_SHARE = "teacher"


@final
class ProgressFollower:
    """Turns tallies into progress; the time left is estimated from the sizes of documents."""

    def __init__(self, cache: CacheWriter, corpus: Corpus, shard: WorkerShard, progress: Progress) -> None:
        missing, plan = cache.missing(), cache.manifest.plan
        own = [number for number in missing if number % shard.count == shard.index]
        self._cache, self._progress = cache, progress
        self._rows = sum(corpus.expected_rows(plan.part(number), plan.sequence_length) for number in own)
        parts = Task.of_parts("cache-teacher", plan.n_parts, plan.n_parts - len(missing))
        self._task = replace(parts, unit="positions", total=None, done=0)
        progress.begin(self._task)
        self._committed: SimpleQueue[int] = SimpleQueue()
        self._parts = self._bytes = 0

    def committed(self, number: int) -> None:
        """Record that a part is committed; called by the writing thread."""
        self._committed.put(number)

    def update(self, tally: CaptureTally) -> None:
        """Report progress, and the parts committed since the last call."""
        while not self._committed.empty():
            _, n_bytes = self._cache.record(self._committed.get())
            self._bytes, self._parts = self._bytes + n_bytes, self._parts + 1
        seconds = tally.capture_seconds
        # Parts taken over from other workers come on top and are not included.
        left = max(0.0, self._rows - tally.rows) * seconds / tally.rows if tally.rows else None
        facts = {TEACHER_SHARE: tally.waiting_seconds / seconds, "written": self._bytes, "parts": self._parts}
        self._progress.update(TaskUpdate(done=tally.positions, seconds_left=left, facts=facts))

    def finish(self) -> None:
        self._progress.finish(self._task)
