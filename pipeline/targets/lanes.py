"""`Lanes`: on a CPU chunks are reduced in parallel, one thread each, rather than one chunk by all threads.

In: rows of logits with labels and keys. Out: a result for each chunk of them, in order. Threads that share a chunk wait
for each other some sixty times per chunk: with one of two cores busy elsewhere that took twice as long in the median
and ten times at worst.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor

from kdpipe.pipeline.targets.chunk import LogitChunk

# Each has 16 MiB, and Python can keep about this many busy.
MOST = 16
Result = TypeVar("Result")
Work = Callable[[LogitChunk, Tensor, Tensor, Tensor], Result]


class Lanes:
    """As many chunks at a time as torch has threads; on other devices one after the other."""

    def __init__(self, vocabulary_size: int, device: torch.device) -> None:
        n = min(torch.get_num_threads(), MOST) if device.type == "cpu" else 1
        self._free: SimpleQueue[LogitChunk] = SimpleQueue()
        for _ in range(n):
            chunk = LogitChunk(vocabulary_size, device)
            self._free.put(chunk)
        self._n_rows, self._empty_P = chunk.n_rows, torch.zeros_like(chunk.shifted_CP[0])
        self._threads = _single_threads(n) if n > 1 else None

    def widened(self, values_V: Tensor) -> Tensor:
        """A number for every id, padded with 0 to whole blocks."""
        padded_P = self._empty_P.clone()
        padded_P[: len(values_V)] = values_V
        return padded_P

    def map(self, work: Work[Result], logits_RV: Tensor, labels_R: Tensor, keys_R: Tensor) -> list[Result]:
        """Cut the rows into chunks and process each; zero rows make one chunk."""
        inference = torch.is_inference_mode_enabled()

        def on(first: int) -> Result:
            rows, chunk = slice(first, first + self._n_rows), self._free.get()
            try:
                with torch.inference_mode(inference):
                    return work(chunk, logits_RV[rows], labels_R[rows], keys_R[rows])
            finally:
                self._free.put(chunk)

        starts = range(0, max(1, len(logits_RV)), self._n_rows)
        return list(map(on, starts) if self._threads is None or len(starts) == 1 else self._threads.map(on, starts))


def _single_threads(n: int) -> ThreadPoolExecutor:
    """Threads in which torch is single-threaded; the number for later threads is restored."""
    before, together = torch.get_num_threads(), Barrier(n)
    threads = ThreadPoolExecutor(n, thread_name_prefix="reducing")

    def begin(_: int) -> None:
        torch.set_num_threads(1)
        together.wait()

    list(threads.map(begin, range(n)))
    torch.set_num_threads(before)
    return threads
