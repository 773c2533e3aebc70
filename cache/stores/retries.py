"""Retries of remote stores, with exponential backoff within a time limit.

In: a function that raises `Unreachable` or `ConnectionFailed`. Out: its result, or its last error; each retry is
reported with the time left. All commands share one policy, so that they survive the same failures. A refused
connection is retried only if the host has answered before: a server that restarts comes back, a wrong address does not.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar, final
from urllib.parse import urlsplit

from kdpipe.cache.stores.protocol import MAX_LISTED, ListableStore
from kdpipe.schemas.errors import ConnectionFailed, Interrupted, Unreachable

Result = TypeVar("Result")
Item = TypeVar("Item")
STOPPED: Final = "run the same command again to resume"
LATER: Final = "run the same command again later, or with a longer --retry-for, such as 30m"
RETRY_SECONDS: Final = 300.0
_log = logging.getLogger(__name__)


def _warn(text: str) -> None:
    _log.warning("%s", text)


@dataclass(slots=True)
class HostState:
    """Whether a host has answered, and until when further failures are not reported."""

    has_answered: bool = False
    reported_until: float = float("-inf")
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Retry for at most `budget` seconds; pauses double from `first` to `longest`, with jitter between half and all of
    each, so that many clients do not return at once. `report` is called with a line for each retry."""

    budget: float = RETRY_SECONDS
    first: float = 0.5
    longest: float = 30.0
    report: Callable[[str], None] = _warn
    stop: threading.Event = field(default_factory=threading.Event)
    clock: Callable[[], float] = time.monotonic
    wait: Callable[[threading.Event, float], object] = threading.Event.wait
    draw: Callable[[], float] = random.random
    hosts: dict[str, HostState] = field(default_factory=dict)
    host: str = ""

    def __reduce__(self) -> tuple[object, ...]:
        """Another process has the same times, and its own state of hosts."""
        return (_rebuilt, (self.budget, self.first, self.longest, self.host))

    def at(self, url: str) -> "RetryPolicy":
        """The policy for the host of a URL; the state of hosts is shared."""
        parts = urlsplit(url)
        return replace(self, host=f"{parts.scheme}://{parts.netloc}")

    def call(self, work: Callable[[], Result]) -> Result:
        """Call a function until it succeeds, fails for good, or the time is over."""
        began, pause, n_retries = self.clock(), self.first, 0
        host = self.hosts.setdefault(self.host, HostState())
        while True:
            self.check()
            try:
                result = work()
            except ConnectionFailed as error:
                if not host.has_answered and not n_retries:
                    raise
                failure: ConnectionFailed | Unreachable = error
            except Unreachable as error:
                if error.is_final:
                    raise
                failure = error
            else:
                host.has_answered = True
                return result
            spent = self.clock() - began
            self._pause(failure, host, pause, spent, n_retries)
            pause, n_retries = min(2 * pause, self.longest), n_retries + 1

    def _pause(
        self, failure: ConnectionFailed | Unreachable, host: HostState, pause: float, spent: float, n_retries: int
    ) -> None:
        """Report a failure and wait; `Unreachable` once the time is over."""
        left = self.budget - spent
        requested = failure.wait_seconds if isinstance(failure, Unreachable) else 0.0
        if left <= 0 or requested > left:
            tried = f"; retried for {spent:,.0f} s" if n_retries else ""
            tried += f"; the server requests a pause of {requested:,.0f} s" if requested > left > 0 else ""
            raise Unreachable(failure.message + tried, hint=LATER, is_final=True) from None
        seconds = min(max(pause * (0.5 + 0.5 * self.draw()), requested), left)
        with host.lock:
            now = self.clock()
            is_first = now >= host.reported_until
            if is_first:
                host.reported_until = now + seconds
        if is_first:
            self.report(f"{failure.message}; retrying in {_duration(seconds)}, for at most {_duration(left)}")
        self.wait(self.stop, seconds)

    def check(self) -> None:
        """Raise `Interrupted` once a stop was requested."""
        if self.stop.is_set():
            raise Interrupted("interrupted; committed parts are safe", hint=STOPPED)


def _rebuilt(budget: float, first: float, longest: float, host: str) -> RetryPolicy:
    return RetryPolicy(budget=budget, first=first, longest=longest, host=host)


def _duration(seconds: float) -> str:
    """Seconds in words: 0.5 s, 42 s, 4 min 10 s."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 99.5 else f"{int(seconds) // 60} min {int(seconds) % 60} s"


def map_concurrently(
    work: Callable[[Item], Result], items: Sequence[Item], at_once: int, retry_policy: RetryPolicy
) -> list[Result]:
    """Call a function for each item in threads; the first failure or interrupt stops the others."""
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
    # `Interrupted` in one thread follows from the failure of another.
    for error in sorted(failures, key=lambda error: isinstance(error, Interrupted)):
        raise error
    retry_policy.check()
    return [future.result() for future in futures]


@final
class RetryingStore:
    """A remote store, each request to which is retried."""

    def __init__(self, store: ListableStore, retry_policy: RetryPolicy) -> None:
        self.url = store.url
        self._store, self._call = store, retry_policy.call

    def walk(self, folder: str, limit: int = MAX_LISTED) -> dict[str, int]:
        return self._call(lambda: self._store.walk(folder, limit))

    def names(self, folder: str) -> list[str]:
        return self._call(lambda: self._store.names(folder))

    def size(self, name: str) -> int | None:
        return self._call(lambda: self._store.size(name))

    def read(self, name: str, limit: int) -> bytes:
        return self._call(lambda: self._store.read(name, limit))

    def view(self, name: str, size: int) -> memoryview:
        return self._call(lambda: self._store.view(name, size))

    def read_range(self, name: str, begin: int, end: int, tag: str | None = None) -> bytes:
        return self._call(lambda: self._store.read_range(name, begin, end, tag))

    def tag(self, name: str) -> str | None:
        return self._call(lambda: self._store.tag(name))

    def listed(self) -> dict[str, int] | None:
        return self._call(self._store.listed)

    def list_parts(self, sizes: Mapping[str, int] | None = None) -> dict[str, dict[str, int]]:
        return self._call(lambda: self._store.list_parts(sizes))
