"""`MirrorStore`: a cache behind a URL, read through a folder on this machine that holds a bounded share of its parts.

In: a far store, a folder, a limit in bytes. Out: a `Store` whose parts are files here, fetched whole, checked, ahead of
their use where that is known. The folder is shared by all processes of a machine, and outlives them; the parts that
were read longest ago go first.
"""

import gc
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, final

from kdpipe.cache import layout
from kdpipe.cache.durable.files import make_dir, translate_os_errors, work_folder
from kdpipe.cache.fetch.file import Fetcher, Found
from kdpipe.cache.fetch.receiver import Receiver
from kdpipe.cache.fetch.source import SourceSnapshot, look
from kdpipe.cache.mirror.leases import PartLease, alone
from kdpipe.cache.parts.index import IndexRow
from kdpipe.cache.reader import Cache
from kdpipe.cache.stores.addresses import MirrorSettings, check_address
from kdpipe.cache.stores.dispatch import open_store
from kdpipe.cache.stores.local_store import LocalStore
from kdpipe.cache.stores.protocol import MAX_LISTED, Store
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.schemas.errors import CacheDamaged, CacheWriteError, ConfigError, KdpipeError
from kdpipe.schemas.strict_json import sha256_hex

HELD: Final = "held"
# Parts fetched at once ahead of their use.
AHEAD: Final = 2
# Seconds between two looks for room while others hold every part.
PAUSE: Final = 0.05


_stores: dict[tuple[int, str, Path], "MirrorStore"] = {}
_stores_lock = threading.Lock()


def mirrored_store(url: str, mirror: MirrorSettings, retry_policy: RetryPolicy | None = None) -> "MirrorStore":
    """The store of a far cache: one for all its readers of this process, so that they share its limit."""
    check_address(url)
    key = (os.getpid(), url.rstrip("/"), mirror.folder)
    with _stores_lock:
        if key not in _stores:
            retry_policy = (retry_policy or RetryPolicy()).at(url)
            _stores[key] = MirrorStore(open_store(url, retry_policy), mirror, retry_policy)
        store = _stores[key]
    if store.limit != mirror.limit:
        raise ConfigError(f"{url} is read already with a limit of {store.limit:,} bytes", hint="give the same limit")
    return store


@final
class MirrorStore:
    """A far cache of which some parts are near; one a process for each cache and folder."""

    def __init__(self, far: Store, mirror: MirrorSettings, retry_policy: RetryPolicy) -> None:
        self.url, self.limit = far.url, mirror.limit
        self._far = far
        fetcher = Fetcher(store=far, retry_policy=retry_policy)
        self._source: SourceSnapshot = fetcher.believed(lambda: look(far, allow_partial=True))
        self._rows = {row.part: row for row in self._source.rows}
        self._check_limit()
        manifest = self._source.manifest
        # Caches of one manifest may have been made twice, by machines that round otherwise.
        identity = self._source.cache_id or sha256_hex(f"{manifest.sha256} {self.url}".encode())
        root = mirror.folder / identity[:32]
        with translate_os_errors("keeping parts near", mirror.folder):
            make_dir(root)
        self._root, self._retry_policy = root, retry_policy
        existing = {name for name in self._source.shared if os.path.lexists(root / name)}
        self._receiver = Receiver(root, manifest, self._source.manifest_bytes, fetcher)
        damaged = [layout.MANIFEST] if self._receiver.manifest_was_damaged else []
        damaged += [name for name in self._receiver.take_shared(self._source.shared) if name in existing]
        self._report_damage(damaged)
        self._receiver.tidy()
        self._near = LocalStore(root)
        self._lock = threading.Lock()
        self._fetching: dict[int, threading.Lock] = {}
        self._more = threading.Condition()
        self._due: deque[int] = deque()
        self._threads: list[threading.Thread] = []
        self._expected: tuple[int, ...] = ()
        self._coming: set[int] = set()
        self._looked_at: set[int] = set()
        self._readers: weakref.WeakSet[Cache] = weakref.WeakSet()
        self.n_fetched = 0

    def walk(self, folder: str, limit: int = MAX_LISTED) -> dict[str, int]:
        """See `Store`."""
        return self._of(folder, lambda store: store.walk(folder, limit))

    def names(self, folder: str) -> list[str]:
        """See `Store`."""
        return self._retry_policy.call(lambda: self._far.names(folder))

    def size(self, name: str) -> int | None:
        """See `Store`."""
        return self._retry_policy.call(lambda: self._far.size(name))

    def read(self, name: str, limit: int) -> bytes:
        """See `Store`; a part's record alone does not bring the part."""
        if name.endswith(f"/{layout.PART_RECORD}") and not (self._root / name).is_file():
            return self._retry_policy.call(lambda: self._far.read(name, limit))
        return self._of(name, lambda store: store.read(name, limit))

    def view(self, name: str, size: int) -> memoryview:
        """See `Store`."""
        return self._of(name, lambda store: store.view(name, size))

    def read_range(self, name: str, begin: int, end: int, tag: str | None = None) -> bytes:
        """See `Store`."""
        return self._of(name, lambda store: store.read_range(name, begin, end, tag))

    def tag(self, name: str) -> str | None:
        """See `Store`."""
        return self._of(name, lambda store: store.tag(name))

    def _of(self, name: str, ask: Callable[[Store], Found]) -> Found:
        """Ask the files that are here, once they are; the index and what else says of the cache what it is stay far."""
        top, _, rest = name.partition("/")
        if top == layout.PARTS and (number := rest.partition("/")[0]).isdigit():
            lease = self.hold(int(number))
            try:
                return ask(self._near)
            finally:
                lease.release()
        if top in (layout.TABLES, layout.TOKENIZER):
            return ask(self._near)
        return self._retry_policy.call(lambda: ask(self._far))

    @property
    def max_open_parts(self) -> int:
        """How many parts a reader may keep open so that there is room for the next one."""
        return max(1, self.limit // max(self._largest(), 1) - 1)

    def join(self, reader: Cache) -> None:
        """A reader that lets parts go when there is no room."""
        self._readers.add(reader)

    def hold(self, number: int) -> PartLease:
        """Bring a part near, and keep it there until the lease is released."""
        lease = PartLease(self._root / HELD / f"{number:05d}")
        try:
            self._bring(number)
        except BaseException:
            lease.release()
            raise
        return lease

    def expect(self, numbers: Sequence[int]) -> None:
        """The parts that will be needed next, in this order: fetched ahead as far as the limit lets them stay."""
        room = self.limit - self._largest()
        fitting = []
        for number in numbers:
            room -= self._rows[number].n_bytes
            if room < 0:
                break
            fitting.append(number)
        with self._more:
            self._expected = tuple(numbers)
            self._due = deque(number for number in fitting if not self._receiver.has(number))
            self._more.notify_all()
        if self._due and not self._threads:
            # Daemons: a process that ends does not wait for parts that nobody will read.
            self._threads = [threading.Thread(target=self._go_ahead, daemon=True) for _ in range(AHEAD)]
            for thread in self._threads:
                thread.start()

    def _go_ahead(self) -> None:
        """Fetch what is expected; what fails is met again by whoever needs it, and told there."""
        while True:
            with self._more:
                while not self._due:
                    self._more.wait()
                number = self._due.popleft()
            with suppress(KdpipeError):
                self.hold(number).release()

    def _bring(self, number: int) -> None:
        with self._lock:
            lock = self._fetching.setdefault(number, threading.Lock())
        with lock:
            row = self._rows[number] if self._source.index is not None else None
            if self._make_room(number):
                try:
                    self._receiver.take_part(number, row)
                finally:
                    with self._lock:
                        self._coming.discard(number)
                        self._remove_until(self.limit)
                self.n_fetched += 1
            elif number not in self._looked_at:
                self._replace_if_damaged(number, row)
            self._looked_at.add(number)
            with suppress(OSError):
                os.utime(self._root / layout.part_dir(number))

    def _replace_if_damaged(self, number: int, row: IndexRow | None) -> None:
        """Fetch a part again of which a disk spoiled some, or others removed some of its files."""
        if wrong := self._receiver.problems(number, row):
            self._retry_policy.report(
                f"part {number} in {self._root} is damaged and fetched again from {self.url}: {wrong[0]}"
            )
            self._receiver.take_part(number, row, damaged=True)
            self.n_fetched += 1

    def repair(self, number: int) -> None:
        """Fetch again what is damaged of a part, or of the tables; of several readers the first one does."""
        lease = self.hold(number)
        try:
            with self._fetching[number]:
                self._replace_if_damaged(number, self._rows[number] if self._source.index is not None else None)
            with self._lock:
                damaged = self._receiver.take_shared(self._source.shared)
        finally:
            lease.release()
        self._report_damage(damaged)

    def _report_damage(self, names: Sequence[str]) -> None:
        """Say which files of the whole cache were damaged in the mirror."""
        for name in names:
            self._retry_policy.report(f"{name} in {self._root} was damaged and fetched again from {self.url}")

    def located(self, number: int, error: CacheDamaged) -> CacheDamaged:
        """An error in the mirror of a part, with its folder."""
        return CacheDamaged(
            f"{self._root / layout.part_dir(number)}: {error.message}",
            hint=f"kdpipe cache verify {self.url} --level deep shows whether it is damaged there too",
        )

    def _make_room(self, number: int) -> bool:
        """Whether a part is to be fetched: it is not there, and there is room, which is kept for it.

        Parts that nobody holds are removed for that, those read longest ago first. Another process may bring the part
        meanwhile; it is held already, and stays.
        """
        folder = self._root / layout.part_dir(number)
        most = self.limit - self._rows[number].n_bytes
        began, seen = self._retry_policy.clock(), None
        while self._retry_policy.clock() - began <= self._retry_policy.budget:
            if folder.is_dir():
                return False
            with self._lock:
                there, taken = self._remove_until(most)
                if taken <= most:
                    self._coming.add(number)
                    return True
                now = {*there, *self._coming}
            if now != seen:  # parts come and go: it is worth waiting
                began, seen = self._retry_policy.clock(), now
            for reader in list(self._readers):
                reader.close_parts()
            # Parts whose readers are done for may hang in a cycle, as the traceback of a driver's error makes one.
            gc.collect()
            self._retry_policy.check()
            self._retry_policy.stop.wait(PAUSE)
        raise CacheWriteError(
            f"{self._root} holds {taken:,} bytes that are being read, and part {number} is over the limit of "
            f"{self.limit:,}",
            hint="raise --cache-limit, or let fewer processes read at once",
        )

    def _remove_until(self, limit: int) -> tuple[list[int], int]:
        """Remove parts without a lease while their bytes exceed a limit; return the parts found, and the bytes left.

        Processes do not see the downloads of other processes, so the limit may be exceeded when all of them have ended.
        """
        there = self._there()
        taken = sum(self._rows[one].n_bytes for one in {*there, *self._coming})
        for one in there:
            if taken > limit and self._remove(one):
                taken -= self._rows[one].n_bytes
        return there, taken

    def _there(self) -> list[int]:
        """The parts that are near, those that are not expected and were read longest ago first."""
        found = []
        soon = set(self._expected)
        with suppress(FileNotFoundError):
            for entry in os.scandir(self._root / layout.PARTS):
                if layout.PART_NAME.match(entry.name) and int(entry.name) in self._rows:
                    with suppress(FileNotFoundError):
                        found.append((int(entry.name) in soon, entry.stat().st_mtime_ns, int(entry.name)))
        return [number for _, _, number in sorted(found)]

    def _remove(self, number: int) -> bool:
        with alone(self._root / HELD / f"{number:05d}") as is_free:
            if not is_free:
                return False
            try:
                with work_folder(self._root, "removed") as work:
                    (self._root / layout.part_dir(number)).rename(work / "part")
            except PermissionError:  # where files that are mapped cannot be moved
                return False
            except FileNotFoundError:
                return True
            return True

    def _largest(self) -> int:
        return max((row.n_bytes for row in self._rows.values()), default=0)

    def _check_limit(self) -> None:
        least = 2 * self._largest()
        if self.limit < least:
            raise ConfigError(
                f"a limit of {self.limit:,} bytes does not hold two parts of {self.url}, the largest of which has "
                f"{self._largest():,}",
                hint=f"give --cache-limit at least {least:,}",
            )
