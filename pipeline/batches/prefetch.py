"""`StepLoader`: the batches of any step, made ahead on threads on the assumption that the line goes on as it did.

In: a cache, an order, places in its line. Out: the `StepBatch` of those places, the same whatever was assumed and
however many threads work.
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import final

import numpy as np

from kdpipe.cache.reader import Cache
from kdpipe.pipeline.batches.batch_order import Ordering
from kdpipe.pipeline.batches.collate import BatchContents, check_wants, make_batch
from kdpipe.pipeline.batches.micro_batch import MicroBatch, StepBatch

Numbers = tuple[int, ...]
KEPT_PLACES = 1024


@final
class StepLoader:
    """Micro-batches of `batch_size` sequences, `ahead` of them made before they are asked for.

    `waited_seconds` is how long `take` has waited for them in all, `n_missed` how many were not even begun by then.
    What is read of a cache while it is damaged is refused by `take`, in the words of the reader.
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
        check_wants(cache, wants)
        self._cache, self._wants, self._pin = cache, wants, pin
        self._batch_size, self._ahead = batch_size, ahead
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="loading")
        self._made: dict[Numbers, Future[MicroBatch]] = {}
        self._line: tuple[Ordering | None, int, list[int]] = (None, 0, [])
        self.waited_seconds = 0.0
        self.n_missed = 0

    def take(self, begin: int, end: int, order: Ordering) -> StepBatch:
        """The batches of places begin to end."""
        wanted = self._cut(begin, end, order)
        coming = self._coming(begin, end, order)
        self.n_missed += len(set(wanted) - set(self._made))
        for numbers in set(self._made) - set(wanted) - set(coming):
            self._made.pop(numbers).cancel()
        for numbers in (*wanted, *coming):
            if numbers not in self._made:
                self._made[numbers] = self._executor.submit(
                    make_batch, self._cache, numbers, self._wants, pin=self._pin
                )
        start = time.perf_counter()
        try:
            batches = tuple(self._made[numbers].result() for numbers in wanted)
        finally:
            self.waited_seconds += time.perf_counter() - start
            for numbers in set(wanted) - set(coming):
                del self._made[numbers]
        return StepBatch(batches=batches, begin=begin, end=end)

    def _cut(self, begin: int, end: int, order: Ordering) -> list[Numbers]:
        """The sequences of each micro-batch of a step; the last may be short."""
        line = self._stretch(begin, end, order)
        return [tuple(line[first : first + self._batch_size]) for first in range(0, len(line), self._batch_size)]

    def _coming(self, begin: int, end: int, order: Ordering) -> list[Numbers]:
        """The micro-batches that come next if all steps are as long as this one, `ahead` of them."""
        step, found = end - begin, list[Numbers]()
        while step and len(found) < self._ahead:
            begin, end = end, end + step
            found += self._cut(begin, end, order)
        return found[: self._ahead]

    def _stretch(self, begin: int, end: int, order: Ordering) -> list[int]:
        """The sequences at places begin to end; a long stretch of the line is kept, since asking costs a millisecond
        for few places as for many."""
        of, first, line = self._line
        if of is not order or not first <= begin <= end <= first + len(line):
            first, line = begin, order.at(np.arange(begin, max(end, begin + KEPT_PLACES))).tolist()
            self._line = (order, first, line)
            self._cache.expect(line)
        return line[begin - first : end - first]

    def close(self) -> None:
        """End the threads; what they were making is lost."""
        self._executor.shutdown(cancel_futures=True)
        self._made.clear()

    def __enter__(self) -> "StepLoader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def loading_threads(n_cpus: int) -> int:
    """Threads that keep up with a fast GPU (docs/experiments.md), and leave a CPU to the loop."""
    return max(1, min(4, n_cpus - 1))
