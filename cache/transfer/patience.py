"""Patience with a place that fails: again after a while, and again after a longer one, until the budget is spent.

In: a piece of work that raises `Unreachable`. Out: what it gives, or its last error once nothing has worked for so
long; a request to stop ends the waiting. Before it: the stores. After it: `fetching.py`, `sending.py`.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TypeVar

from kdpipe.schemas.errors import Interrupted, Unreachable

Found = TypeVar("Found")
Item = TypeVar("Item")
STOPPED = "run the same command again to go on"


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """`budget` seconds without anything that works are too many; pauses double from `first` to `longest`, each drawn
    from its half to its whole, so that many who wait do not come back at once."""

    budget: float = 300.0
    first: float = 0.5
    longest: float = 30.0
    stop: threading.Event = field(default_factory=threading.Event)
    clock: Callable[[], float] = time.monotonic
    draw: Callable[[], float] = random.random

    def through(self, work: Callable[[], Found], retried: Callable[[Unreachable], None] | None = None) -> Found:
        """Do some work, as often as it takes."""
        began, pause = self.clock(), self.first
        while True:
            self.check()
            try:
                return work()
            except Unreachable as error:
                spent = self.clock() - began
                if spent + pause > self.budget:
                    tried = f"{error.message}; tried again for {spent:,.0f} s"
                    raise Unreachable(tried, hint=error.hint) from None
                if retried is not None:
                    retried(error)
                self.stop.wait(pause * (0.5 + 0.5 * self.draw()))
                pause = min(2 * pause, self.longest)

    def check(self) -> None:
        """Raise `Interrupted` once a stop was asked for."""
        if self.stop.is_set():
            raise Interrupted("stopped; what was committed is safe", hint=STOPPED)


def each(work: Callable[[Item], Found], items: Sequence[Item], at_once: int, patience: Patience) -> list[Found]:
    """Do something with each, some at once; the first failure or a request to stop ends all after their piece."""
    pool = ThreadPoolExecutor(max_workers=at_once)
    futures = [pool.submit(work, item) for item in items]
    try:
        wait(futures, return_when=FIRST_EXCEPTION)
    except KeyboardInterrupt:
        patience.stop.set()
    else:
        if any(future.done() and future.exception() is not None for future in futures):
            patience.stop.set()
    pool.shutdown(wait=True, cancel_futures=True)
    failures = [error for future in futures if not future.cancelled() and (error := future.exception()) is not None]
    # Those that were told to stop because another failed have nothing to say.
    for error in sorted(failures, key=lambda error: isinstance(error, Interrupted)):
        raise error
    patience.check()
    return [future.result() for future in futures]
