"""`copy_cache`: a cache from one place to another, whole and checked, gone on with after any interruption.

In: two addresses. Out: a cache at the second that is byte for byte the one at the first, and a `CopyReport`.
Before it: `receiving.py` takes it into a folder, `sending.py` to a URL. After it: `cli/cache/copy.py`, `verify`.
The manifest comes first, each part when all of it is good, the index last: what is there may be trusted at any time.
"""

import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeVar

from kdpipe.cache import layout
from kdpipe.cache.addresses import check_address, is_url, local_path
from kdpipe.cache.index import IndexRow, index_bytes, parsed_index
from kdpipe.cache.part_files import read_part_record
from kdpipe.cache.reader import unindexed
from kdpipe.cache.remote import RemoteFolder
from kdpipe.cache.signing import MAX_BYTES as MAX_SIGNATURE_BYTES
from kdpipe.cache.signing import Signature
from kdpipe.cache.store import Store, open_store
from kdpipe.cache.transfer.fetching import Fetcher
from kdpipe.cache.transfer.patience import Patience
from kdpipe.cache.transfer.receiving import Receiver
from kdpipe.cache.transfer.sending import Sender
from kdpipe.cache.transfer.watching import CopyWatch, NoCopyWatch
from kdpipe.schemas.copy_report import CopyReport
from kdpipe.schemas.errors import CacheWriteError, ConfigError, Interrupted
from kdpipe.schemas.manifest import FileRecord, Manifest, read_manifest
from kdpipe.schemas.records import read_record
from kdpipe.schemas.strict_json import MAX_BYTES

# At once, of a place where each request takes its time, and of a disk.
REMOTE_PARTS: Final = 8
LOCAL_PARTS: Final = 2
# Left free on a disk that a cache is copied to.
SPARE_BYTES: Final = 16 << 20
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A cache as it is read once, before anything is copied; `index` is None where it is unfinished."""

    store: Store
    manifest: Manifest
    manifest_bytes: bytes
    rows: tuple[IndexRow, ...]
    cache_id: str | None
    index: bytes | None
    signature: bytes | None
    shared: dict[str, FileRecord]


@dataclass(slots=True)
class Tally:
    """What was done so far, counted from several threads."""

    watch: CopyWatch
    bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def moved(self, n_bytes: int) -> None:
        """More bytes are here."""
        with self.lock:
            self.bytes += n_bytes
        self.watch.moved(n_bytes)


def copy_cache(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    allow_partial: bool = False,
    patience: Patience | None = None,
    watch: CopyWatch | None = None,
) -> CopyReport:
    """Copy a cache, or what a copy of it lacks or has damaged."""
    began = time.monotonic()
    first, second = os.fspath(source), os.fspath(target)
    check_address(second)
    if _same_place(first, second):
        raise ConfigError(f"{second} is where the cache lies", hint="give another place to copy it to")
    watch, patience = watch or NoCopyWatch(), replace(patience or Patience(), stop=threading.Event())
    tally = Tally(watch)
    store = patience.through(lambda: open_store(first))
    fetcher = Fetcher(store=store, patience=patience, moved=tally.moved, told=watch.say)
    found = fetcher.believed(lambda: look(store, allow_partial=allow_partial))
    into = _into_url if is_url(second) else _into_folder
    parts, repaired = into(second, found, fetcher, watch)
    return CopyReport(
        source=store.url,
        target=second,
        cache_id=found.cache_id,
        parts=len(found.rows),
        copied=parts,
        repaired=repaired,
        bytes=tally.bytes,
        seconds=time.monotonic() - began,
    )


def look(store: Store, *, allow_partial: bool = False) -> Source:
    """Read what says of a cache what it is."""
    data = store.read(layout.MANIFEST, MAX_BYTES)
    manifest = read_manifest(data, layout.MANIFEST)
    index, identity = None, None
    if store.size(layout.INDEX) is not None:
        # Read once: the bytes that are written are those that were checked.
        index = index_bytes(store, manifest)
        rows, identity = parsed_index(index, manifest)
    else:
        rows = unindexed(store, manifest, allow_partial)
    return Source(
        store=store,
        manifest=manifest,
        manifest_bytes=data,
        rows=tuple(rows),
        cache_id=identity,
        index=index,
        signature=_signature(store),
        shared=_shared(store, manifest, rows),
    )


def _signature(store: Store) -> bytes | None:
    """The signature that stands beside a cache, in the form of one; whether it is good is told by who has the key."""
    if store.size(layout.SIGNATURE) is None:
        return None
    data = store.read(layout.SIGNATURE, MAX_SIGNATURE_BYTES)
    read_record(Signature, data, layout.SIGNATURE)
    return data


def _shared(store: Store, manifest: Manifest, rows: Sequence[IndexRow]) -> dict[str, FileRecord]:
    """The files of the whole cache: the tokenizer's, and the tables as the first part states them."""
    files = {f"{layout.TOKENIZER}/{name}": file for name, file in manifest.tokenizer.files.items()}
    for row in rows[:1]:
        record, _ = read_part_record(store, manifest, row.part, None)
        files |= {layout.table_file(name): file for name, file in record.tables.items()}
    return files


def _into_folder(target: str, source: Source, fetcher: Fetcher, watch: CopyWatch) -> tuple[int, tuple[int, ...]]:
    path = Path(local_path(target))
    receiver = Receiver(path, source.manifest, source.manifest_bytes, fetcher)
    is_whole = source.index is not None

    def look_at(row: IndexRow) -> list[str] | None:
        """What is wrong with the part that is there; None where none is."""
        return receiver.problems(row.part, row if is_whole else None) if receiver.has(row.part) else None

    def take(row: IndexRow) -> None:
        receiver.take_part(row.part, row if is_whole else None)

    looked = _each(look_at, source.rows, LOCAL_PARTS, fetcher.patience)
    due = [row for row, wrong in zip(source.rows, looked, strict=True) if wrong is None or wrong]
    repaired = {row.part: wrong[0] for row, wrong in zip(source.rows, looked, strict=True) if wrong}
    for number, wrong in repaired.items():
        watch.say(f"part {number} is damaged and fetched again: {wrong}")
    n_bytes = sum(row.n_bytes for row in due)
    _check_space(path, n_bytes)
    watch.begin(len(due), n_bytes)
    receiver.take_shared(source.shared)
    _each(take, due, REMOTE_PARTS if is_url(source.store.url) else LOCAL_PARTS, fetcher.patience)
    if source.index is not None:
        receiver.take_index(source.index)
    if source.signature is not None:
        receiver.take_signature(source.signature)
    receiver.tidy()
    return len(due), tuple(repaired)


def _into_url(target: str, source: Source, fetcher: Fetcher, watch: CopyWatch) -> tuple[int, tuple[int, ...]]:
    if target.startswith(("http://", "https://")):
        raise ConfigError(f"{target} cannot be written to: a web server takes no files", hint="copy from it, not to it")
    patience = fetcher.patience
    place = patience.through(lambda: RemoteFolder(target))
    sender = Sender(place=place, manifest=source.manifest, fetcher=fetcher)
    sender.begin(source.manifest_bytes)
    there = _each(sender.has, source.rows, REMOTE_PARTS, patience)
    due = [row for row, is_there in zip(source.rows, there, strict=True) if not is_there]
    watch.begin(len(due), sum(row.n_bytes for row in due))
    sender.send_shared(source.shared)
    _each(sender.send_part, due, REMOTE_PARTS, patience)
    if source.index is not None:
        sender.finish(source.index)
    if source.signature is not None:
        sender.sign(source.signature)
    return len(due), ()


def _each(work: Callable[[IndexRow], Found], rows: Sequence[IndexRow], at_once: int, patience: Patience) -> list[Found]:
    """Do something with each, some at once; the first failure or a request to stop ends all after their piece."""
    pool = ThreadPoolExecutor(max_workers=at_once)
    futures = [pool.submit(work, row) for row in rows]
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


def _check_space(path: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(path).free
    if free < n_bytes + SPARE_BYTES:
        raise CacheWriteError(
            f"{path} has {free:,} bytes free, the copy takes {n_bytes:,} more",
            hint="free some space, copy to another disk, or fewer parts (--parts)",
        )


def _same_place(first: str, second: str) -> bool:
    if is_url(first) or is_url(second):
        return first.rstrip("/") == second.rstrip("/")
    return Path(local_path(first)).resolve() == Path(local_path(second)).resolve()
