"""`StepLoader`: the batches of any step, prefetched on threads under the assumption of equal consecutive steps.

In: a cache, an order, positions in it. Out: the `StepBatch` of those positions, which does not depend on the assumption
or the number of threads.
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import final

import numpy as np

from kdpipe.cache.reader import Cache
from kdpipe.pipeline.batches.batch_order import Ordering
from kdpipe.pipeline.batches.collate import BatchContents, check_contents, make_batch
from kdpipe.pipeline.batches.micro_batch import MicroBatch, StepBatch

Numbers = tuple[int, ...]
CACHED_POSITIONS = 1024


@final
class StepLoader:
    """Micro-batches of `batch_size` sequences, `ahead` of them prefetched.

    `waited_seconds`: time that `take` has waited; `n_missed`: micro-batches that were not prefetched. `take` raises
    the errors of the cache's reader.
    """

    def __init__(
        self,
        cache: Cache,
        wants: BatchContents,
        *,
        batch_size: int,
        ahead: int = 4,
        threads: int = 1,
        pin: bool = False,
    ) -> None:
        check_contents(cache, wants)
        self._cache, self._wants, self._pin = cache, wants, pin
        self._batch_size, self._ahead = batch_size, ahead
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="loading")
        self._futures: dict[Numbers, Future[MicroBatch]] = {}
        self._line: tuple[Ordering | None, int, list[int]] = (None, 0, [])
        self.waited_seconds = 0.0
        self.n_missed = 0

    def take(self, begin: int, end: int, order: Ordering) -> StepBatch:
        """The batches of positions begin to end."""
        wanted = self._cut(begin, end, order)
        coming = self._upcoming(begin, end, order)
        self.n_missed += len(set(wanted) - set(self._futures))
        for numbers in set(self._futures) - set(wanted) - set(coming):
            self._futures.pop(numbers).cancel()
        for numbers in (*wanted, *coming):
            if numbers not in self._futures:
                self._futures[numbers] = self._executor.submit(
                    make_batch, self._cache, numbers, self._wants, pin=self._pin
                )
        start = time.perf_counter()
        try:
            batches = tuple(self._futures[numbers].result() for numbers in wanted)
        finally:
            self.waited_seconds += time.perf_counter() - start
            for numbers in set(wanted) - set(coming):
                del self._futures[numbers]
        return StepBatch(batches=batches, begin=begin, end=end)

    def _cut(self, begin: int, end: int, order: Ordering) -> list[Numbers]:
        """The sequences of each micro-batch of a step; the last may be shorter."""
        line = self._sequences(begin, end, order)
        return [tuple(line[first : first + self._batch_size]) for first in range(0, len(line), self._batch_size)]

    def _upcoming(self, begin: int, end: int, order: Ordering) -> list[Numbers]:
        """The next `ahead` micro-batches if all steps are as long as this one."""
        step, upcoming = end - begin, list[Numbers]()
        while step and len(upcoming) < self._ahead:
            begin, end = end, end + step
            upcoming += self._cut(begin, end, order)
        return upcoming[: self._ahead]

    def _sequences(self, begin: int, end: int, order: Ordering) -> list[int]:
        """The sequences at positions begin to end; a long stretch is cached, since a lookup takes a millisecond at any
        length."""
        cached_order, first, line = self._line
        if cached_order is not order or not first <= begin <= end <= first + len(line):
            first, line = begin, order.at(np.arange(begin, max(end, begin + CACHED_POSITIONS))).tolist()
            self._line = (order, first, line)
            self._cache.expect(line)
        return line[begin - first : end - first]

    def close(self) -> None:
        """Stop the threads and discard prefetched batches."""
        self._executor.shutdown(cancel_futures=True)
        self._futures.clear()

    def __enter__(self) -> "StepLoader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def loading_threads(n_cpus: int) -> int:
    """Threads that keep up with a fast GPU (docs/experiments.md), and leave a CPU to the training loop."""
    return max(1, min(4, n_cpus - 1))
