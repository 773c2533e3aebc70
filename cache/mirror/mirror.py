"""`MirrorStore`: a local mirror of a remote cache, bounded in bytes.

In: a remote store, a folder, a limit in bytes. Out: a `Store` whose parts are local files, downloaded whole, checked,
and ahead of their use where the order is known. The folder is shared by all processes of a machine and persists; the
least recently read parts are removed first.
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
from kdpipe.cache.fetch.file import Fetcher, Result
from kdpipe.cache.fetch.receiver import Receiver
from kdpipe.cache.fetch.source import SourceSnapshot, read_source
from kdpipe.cache.mirror.leases import PartLease, exclusive
from kdpipe.cache.parts.index import IndexRow
from kdpipe.cache.reader import Cache
from kdpipe.cache.stores.addresses import MirrorSettings, check_address
from kdpipe.cache.stores.dispatch import open_store
from kdpipe.cache.stores.local_store import LocalStore
from kdpipe.cache.stores.protocol import MAX_LISTED, Store
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.schemas.errors import CacheDamaged, CacheWriteError, ConfigError, KdpipeError
from kdpipe.schemas.strict_json import sha256_hex

LEASES: Final = "held"
# Parts downloaded at once ahead of their use.
AHEAD: Final = 2
# Seconds between two attempts to free space while every part has a lease.
PAUSE: Final = 0.05


_stores: dict[tuple[int, str, Path], "MirrorStore"] = {}
_stores_lock = threading.Lock()


def mirrored_store(url: str, mirror: MirrorSettings, retry_policy: RetryPolicy | None = None) -> "MirrorStore":
    """The mirror of a remote cache: one per process and folder, so that all readers share its limit."""
    check_address(url)
    key = (os.getpid(), url.rstrip("/"), mirror.folder)
    with _stores_lock:
        if key not in _stores:
            retry_policy = (retry_policy or RetryPolicy()).at(url)
            _stores[key] = MirrorStore(open_store(url, retry_policy), mirror, retry_policy)
        store = _stores[key]
    if store.limit != mirror.limit:
        raise ConfigError(f"{url} is already mirrored with a limit of {store.limit:,} bytes", hint="use the same limit")
    return store


@final
class MirrorStore:
    """A local mirror of a remote cache, bounded in bytes."""

    def __init__(self, remote: Store, mirror: MirrorSettings, retry_policy: RetryPolicy) -> None:
        self.url, self.limit = remote.url, mirror.limit
        self._remote = remote
        fetcher = Fetcher(store=remote, retry_policy=retry_policy)
        self._source: SourceSnapshot = fetcher.read_checked(lambda: read_source(remote, allow_partial=True))
        self._rows = {row.part: row for row in self._source.rows}
        self._check_limit()
        manifest = self._source.manifest
        # Two caches with the same manifest may differ: machines round differently.
        identity = self._source.cache_id or sha256_hex(f"{manifest.sha256} {self.url}".encode())
        root = mirror.folder / identity[:32]
        with translate_os_errors("creating the mirror", mirror.folder):
            make_dir(root)
        self._root, self._retry_policy = root, retry_policy
        existing = {name for name in self._source.shared if os.path.lexists(root / name)}
        self._receiver = Receiver(root, manifest, self._source.manifest_bytes, fetcher)
        damaged = [layout.MANIFEST] if self._receiver.manifest_was_damaged else []
        damaged += [name for name in self._receiver.take_shared(self._source.shared) if name in existing]
        self._report_damage(damaged)
        self._receiver.tidy()
        self._local = LocalStore(root)
        self._lock = threading.Lock()
        self._part_locks: dict[int, threading.Lock] = {}
        self._wake = threading.Condition()
        self._queue: deque[int] = deque()
        self._threads: list[threading.Thread] = []
        self._expected: tuple[int, ...] = ()
        self._downloading: set[int] = set()
        self._checked: set[int] = set()
        self._readers: weakref.WeakSet[Cache] = weakref.WeakSet()
        self.n_fetched = 0

    def walk(self, folder: str, limit: int = MAX_LISTED) -> dict[str, int]:
        return self._from(folder, lambda store: store.walk(folder, limit))

    def names(self, folder: str) -> list[str]:
        return self._retry_policy.call(lambda: self._remote.names(folder))

    def size(self, name: str) -> int | None:
        return self._retry_policy.call(lambda: self._remote.size(name))

    def read(self, name: str, limit: int) -> bytes:
        if name.endswith(f"/{layout.PART_RECORD}") and not (self._root / name).is_file():
            return self._retry_policy.call(lambda: self._remote.read(name, limit))
        return self._from(name, lambda store: store.read(name, limit))

    def view(self, name: str, size: int) -> memoryview:
        return self._from(name, lambda store: store.view(name, size))

    def read_range(self, name: str, begin: int, end: int, tag: str | None = None) -> bytes:
        return self._from(name, lambda store: store.read_range(name, begin, end, tag))

    def tag(self, name: str) -> str | None:
        return self._from(name, lambda store: store.tag(name))

    def _from(self, name: str, read: Callable[[Store], Result]) -> Result:
        """Read parts, tables and tokenizer from the mirror, everything else from the remote store."""
        top, _, rest = name.partition("/")
        if top == layout.PARTS and (number := rest.partition("/")[0]).isdigit():
            lease = self.hold(int(number))
            try:
                return read(self._local)
            finally:
                lease.release()
        if top in (layout.TABLES, layout.TOKENIZER):
            return read(self._local)
        return self._retry_policy.call(lambda: read(self._remote))

    @property
    def max_open_parts(self) -> int:
        """How many parts a reader may keep open so that the next one still fits."""
        return max(1, self.limit // max(self._largest(), 1) - 1)

    def join(self, reader: Cache) -> None:
        self._readers.add(reader)

    def hold(self, number: int) -> PartLease:
        """Download a part if necessary, and keep it until the lease is released."""
        lease = PartLease(self._root / LEASES / f"{number:05d}")
        try:
            self._download(number)
        except BaseException:
            lease.release()
            raise
        return lease

    def expect(self, numbers: Sequence[int]) -> None:
        """Download the parts that will be read next, in this order, as far as they fit into the limit."""
        room = self.limit - self._largest()
        fitting = []
        for number in numbers:
            room -= self._rows[number].n_bytes
            if room < 0:
                break
            fitting.append(number)
        with self._wake:
            self._expected = tuple(numbers)
            self._queue = deque(number for number in fitting if not self._receiver.has(number))
            self._wake.notify_all()
        if self._queue and not self._threads:
            # Daemons: a process that ends does not wait for downloads.
            self._threads = [threading.Thread(target=self._download_ahead, daemon=True) for _ in range(AHEAD)]
            for thread in self._threads:
                thread.start()

    def _download_ahead(self) -> None:
        """Download expected parts; an error is raised where the part is read."""
        while True:
            with self._wake:
                while not self._queue:
                    self._wake.wait()
                number = self._queue.popleft()
            with suppress(KdpipeError):
                self.hold(number).release()

    def _download(self, number: int) -> None:
        with self._lock:
            lock = self._part_locks.setdefault(number, threading.Lock())
        with lock:
            row = self._rows[number] if self._source.index is not None else None
            if self._make_room(number):
                try:
                    self._receiver.take_part(number, row)
                finally:
                    with self._lock:
                        self._downloading.discard(number)
                        self._remove_until(self.limit)
                self.n_fetched += 1
            elif number not in self._checked:
                self._replace_if_damaged(number, row)
            self._checked.add(number)
            with suppress(OSError):
                os.utime(self._root / layout.part_dir(number))

    def _replace_if_damaged(self, number: int, row: IndexRow | None) -> None:
        """Download a damaged part again."""
        if problems := self._receiver.problems(number, row):
            self._retry_policy.report(
                f"part {number} in {self._root} is damaged; downloading it again from {self.url}: {problems[0]}"
            )
            self._receiver.take_part(number, row, damaged=True)
            self.n_fetched += 1

    def repair(self, number: int) -> None:
        """Download damaged files of a part or of the tables again; of several readers, only the first does."""
        lease = self.hold(number)
        try:
            with self._part_locks[number]:
                self._replace_if_damaged(number, self._rows[number] if self._source.index is not None else None)
            with self._lock:
                damaged = self._receiver.take_shared(self._source.shared)
        finally:
            lease.release()
        self._report_damage(damaged)

    def _report_damage(self, names: Sequence[str]) -> None:
        for name in names:
            self._retry_policy.report(f"{name} in {self._root} was damaged and was downloaded again from {self.url}")

    def located(self, number: int, error: CacheDamaged) -> CacheDamaged:
        return CacheDamaged(
            f"{self._root / layout.part_dir(number)}: {error.message}",
            hint=f"check the source with kdpipe cache verify {self.url} --level deep",
        )

    def _make_room(self, number: int) -> bool:
        """Whether a part must be downloaded; if so, its bytes are reserved.

        Parts without a lease are removed for that, least recently read first. Another process may download the part in
        the meantime; the caller's lease keeps it.
        """
        folder = self._root / layout.part_dir(number)
        most = self.limit - self._rows[number].n_bytes
        began, seen = self._retry_policy.clock(), None
        while True:
            if folder.is_dir():
                return False
            with self._lock:
                present, taken = self._remove_until(most)
                if taken <= most:
                    self._downloading.add(number)
                    return True
                now = {*present, *self._downloading}
            if now != seen:  # parts come and go: waiting may help
                began, seen = self._retry_policy.clock(), now
            elif self._retry_policy.clock() - began > self._retry_policy.budget:
                break
            for reader in list(self._readers):
                reader.close_parts()
            # Parts that are no longer read may be kept by a reference cycle, such as the traceback of an error.
            gc.collect()
            self._retry_policy.check()
            self._retry_policy.stop.wait(PAUSE)
        raise CacheWriteError(
            f"no space for part {number} in {self._root}: {taken:,} bytes are being read, the limit is {self.limit:,}",
            hint="raise --cache-limit, or read with fewer processes",
        )

    def _remove_until(self, limit: int) -> tuple[list[int], int]:
        """Remove parts without a lease while the bytes exceed a limit; returns the parts found, and the bytes left.

        Processes do not see the downloads of other processes, so the limit may be exceeded when all of them have ended.
        """
        present = self._present()
        taken = sum(self._rows[number].n_bytes for number in {*present, *self._downloading})
        for number in present:
            if taken > limit and self._remove(number):
                taken -= self._rows[number].n_bytes
        return present, taken

    def _present(self) -> list[int]:
        """The mirrored parts in the order of removal: unexpected and least recently read first."""
        parts = []
        soon = set(self._expected)
        with suppress(FileNotFoundError):
            for entry in os.scandir(self._root / layout.PARTS):
                if layout.PART_NAME.match(entry.name) and int(entry.name) in self._rows:
                    with suppress(FileNotFoundError):
                        parts.append((int(entry.name) in soon, entry.stat().st_mtime_ns, int(entry.name)))
        return [number for _, _, number in sorted(parts)]

    def _remove(self, number: int) -> bool:
        with exclusive(self._root / LEASES / f"{number:05d}") as is_free:
            if not is_free:
                return False
            try:
                with work_folder(self._root, "removed") as work:
                    (self._root / layout.part_dir(number)).rename(work / "part")
            except PermissionError:  # Windows cannot move mapped files
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
                f"--cache-limit {self.limit:,} is too small for {self.url}: two parts must fit, the largest has "
                f"{self._largest():,} bytes",
                hint=f"use --cache-limit {least:,} or more",
            )
