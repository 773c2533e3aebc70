"""Retries of places that fail: again after a pause, and after a longer one, until the time for it is over.

In: a piece of work that raises `Unreachable` or `ConnectionFailed`. Out: what it gives, or its last error; each retry
is reported with the time that is left. One policy for all reads and writes behind a URL, so that no two commands
differ in what they survive. A refused connection is retried only where the place has answered before: a server that
restarts comes back, a wrong address does not.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar
from urllib.parse import urlsplit

from kdpipe.schemas.errors import ConnectionFailed, Interrupted, Unreachable

Found = TypeVar("Found")
Item = TypeVar("Item")
STOPPED: Final = "run the same command again to go on"
LATER: Final = "run the same command again later, or let it wait longer: --retry-for 30m"
RETRY_SECONDS: Final = 300.0
_log = logging.getLogger(__name__)


def _warn(text: str) -> None:
    _log.warning("%s", text)


@dataclass(slots=True)
class HostState:
    """What is known of a host: whether it has answered, and until when nothing more is reported about it."""

    has_answered: bool = False
    reported_until: float = float("-inf")
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """`budget` seconds without anything that works are too many; pauses double from `first` to `longest`, each drawn
    from its half to its whole, so that many who wait do not come back at once. `report` gets a line for each retry."""

    budget: float = RETRY_SECONDS
    first: float = 0.5
    longest: float = 30.0
    report: Callable[[str], None] = _warn
    stop: threading.Event = field(default_factory=threading.Event)
    clock: Callable[[], float] = time.monotonic
    wait: Callable[[threading.Event, float], object] = threading.Event.wait
    draw: Callable[[], float] = random.random
    places: dict[str, HostState] = field(default_factory=dict)
    host: str = ""

    def __reduce__(self) -> tuple[object, ...]:
        """In another process the same times; what is known of places stays here."""
        return (_rebuilt, (self.budget, self.first, self.longest, self.host))

    def at(self, url: str) -> "RetryPolicy":
        """The same for the host of a URL; what is known of it is shared by all who have this policy."""
        parts = urlsplit(url)
        return replace(self, host=f"{parts.scheme}://{parts.netloc}")

    def call(self, work: Callable[[], Found]) -> Found:
        """Do some work, as often as it takes."""
        began, pause, n_retries = self.clock(), self.first, 0
        place = self.places.setdefault(self.host, HostState())
        while True:
            self.check()
            try:
                found = work()
            except ConnectionFailed as error:
                if not place.has_answered and not n_retries:
                    raise
                failure: ConnectionFailed | Unreachable = error
            except Unreachable as error:
                if error.is_final:
                    raise
                failure = error
            else:
                place.has_answered = True
                return found
            spent = self.clock() - began
            self._pause(failure, place, pause, spent, n_retries)
            pause, n_retries = min(2 * pause, self.longest), n_retries + 1

    def _pause(
        self, failure: ConnectionFailed | Unreachable, place: HostState, pause: float, spent: float, n_retries: int
    ) -> None:
        """Report a failure and wait; `Unreachable` when the time for it is over."""
        left = self.budget - spent
        asked = failure.wait_seconds if isinstance(failure, Unreachable) else 0.0
        if left <= 0 or asked > left:
            tried = f"; tried again for {spent:,.0f} s" if n_retries else ""
            tried += f"; it asks for a pause of {asked:,.0f} s" if asked > left > 0 else ""
            raise Unreachable(failure.message + tried, hint=LATER, is_final=True) from None
        seconds = min(max(pause * (0.5 + 0.5 * self.draw()), asked), left)
        with place.lock:
            now = self.clock()
            is_first = now >= place.reported_until
            if is_first:
                place.reported_until = now + seconds
        if is_first:
            self.report(f"{failure.message}; trying again in {_shown(seconds)}, for at most {_shown(left)}")
        self.wait(self.stop, seconds)

    def check(self) -> None:
        """Raise `Interrupted` once a stop was asked for."""
        if self.stop.is_set():
            raise Interrupted("stopped; what was committed is safe", hint=STOPPED)


def _rebuilt(budget: float, first: float, longest: float, host: str) -> RetryPolicy:
    return RetryPolicy(budget=budget, first=first, longest=longest, host=host)


def _shown(seconds: float) -> str:
    """Seconds as a person counts them down."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 99.5 else f"{int(seconds) // 60} min {int(seconds) % 60} s"


def map_concurrently(
    work: Callable[[Item], Found], items: Sequence[Item], at_once: int, retry_policy: RetryPolicy
) -> list[Found]:
    """Do something with each, some at once; the first failure or a request to stop ends all after their piece."""
    pool = ThreadPoolExecutor(max_workers=at_once)
    futures = [pool.submit(work, item) for item in items]
    try:
        wait(futures, return_when=FIRST_EXCEPTION)
    except KeyboardInterrupt:
        retry_policy.stop.set()
    else:
        if any(future.done() and future.exception() is not None for future in futures):
            retry_policy.stop.set()
    pool.shutdown(wait=True, cancel_futures=True)
    failures = [error for future in futures if not future.cancelled() and (error := future.exception()) is not None]
    # Those that were told to stop because another failed have nothing to say.
    for error in sorted(failures, key=lambda error: isinstance(error, Interrupted)):
        raise error
    retry_policy.check()
    return [future.result() for future in futures]
