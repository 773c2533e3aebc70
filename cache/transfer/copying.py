"""`copy_cache`: a cache from one place to another, whole and checked, gone on with after any interruption.

In: two addresses. Out: a cache at the second that is byte for byte the one at the first, and a `CopyReport`. The
manifest comes first, each part when all of it is good, the index last: what is there may be trusted at any time.
"""

import os
import shutil
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from kdpipe.cache.catalog import load_manifest
from kdpipe.cache.fetch.file import Fetcher
from kdpipe.cache.fetch.receiver import Receiver
from kdpipe.cache.fetch.source import SourceSnapshot, look
from kdpipe.cache.parts.index import IndexRow
from kdpipe.cache.reshape.sources import lies_in
from kdpipe.cache.stores.addresses import check_address, is_url, local_path
from kdpipe.cache.stores.dispatch import open_folder, open_store
from kdpipe.cache.stores.retries import RetryPolicy, map_concurrently
from kdpipe.cache.transfer.copy_progress import CopyWatch, SilentCopyWatch
from kdpipe.cache.transfer.part_selection import choose
from kdpipe.cache.transfer.sending import Sender
from kdpipe.schemas.copy_report import CopyReport, PartSelection
from kdpipe.schemas.errors import CacheDamaged, CacheWriteError, ConfigError

# At once, of a place where each request takes its time, and of a disk.
REMOTE_PARTS: Final = 8
LOCAL_PARTS: Final = 2
# Left free on a disk that a cache is copied to.
SPARE_BYTES: Final = 16 << 20


@dataclass(slots=True)
class CopyTally:
    """What was done so far, counted from several threads."""

    watch: CopyWatch
    bytes: int = 0
    redownloaded: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def moved(self, n_bytes: int) -> None:
        """More bytes are here."""
        with self.lock:
            self.bytes += n_bytes
        self.watch.moved(n_bytes)

    def anew(self) -> None:
        """A file begins anew."""
        with self.lock:
            self.redownloaded += 1


def copy_cache(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    choice: PartSelection | None = None,
    mend: bool = False,
    allow_partial: bool = False,
    retry_policy: RetryPolicy | None = None,
    watch: CopyWatch | None = None,
) -> CopyReport:
    """Copy a cache, or what a copy of it lacks or has damaged; with a choice, a smaller cache that is made of it.

    To `mend` what was made by a choice, that one holds again.
    """
    began = time.monotonic()
    first, second = os.fspath(source), os.fspath(target)
    check_address(first)
    check_address(second)
    if lies_in(second, first):
        raise ConfigError(f"{second} is where the cache lies, or within it", hint="give another place to copy it to")
    choice = choice or PartSelection()
    if allow_partial and choice != PartSelection():
        raise ConfigError(
            f"{choice} of a cache that is unfinished would be a cache that says it is whole",
            hint="leave out --allow-partial, and wait until the cache is finished",
        )
    retry_policy = replace(retry_policy or RetryPolicy(), stop=threading.Event())
    if watch is None:
        watch = SilentCopyWatch()
    else:
        retry_policy = replace(retry_policy, report=watch.say)
    tally = CopyTally(watch)
    retry_policy = retry_policy.at(first)
    store = open_store(first, retry_policy)
    fetcher = Fetcher(store=store, retry_policy=retry_policy, moved=tally.moved, told=watch.say, anew=tally.anew)
    found = fetcher.believed(lambda: look(store, allow_partial=allow_partial))
    if mend:
        choice = _made_by(second, found, retry_policy)
    made_from = None
    if choice != PartSelection():
        made_from = found.cache_id
        found, fetcher = choose(found, choice, fetcher)
    repaired: tuple[int, ...] = ()
    if is_url(second):
        parts = _into_url(second, found, fetcher, watch, mend)
    else:
        parts, repaired = _into_folder(second, found, fetcher, watch)
    return CopyReport(
        source=store.url,
        target=second,
        cache_id=found.cache_id,
        choice=str(choice) or None,
        made_from=made_from,
        parts=len(found.rows),
        copied=parts,
        repaired=repaired,
        redownloaded=tally.redownloaded,
        bytes=tally.bytes,
        seconds=time.monotonic() - began,
    )


def _made_by(target: str, found: SourceSnapshot, retry_policy: RetryPolicy) -> PartSelection:
    """The choice by which what lies there was made of this source; all of it where it was not."""
    try:
        history = load_manifest(open_store(target, retry_policy)).history
    except (CacheDamaged, ConfigError):  # told of, or mended, by the copy
        return PartSelection()
    made = history[-1] if history else None
    if made is None or made.action != "copy" or made.caches != (found.cache_id,):
        return PartSelection()
    return PartSelection.of(made.note) or PartSelection()


def _into_folder(
    target: str, source: SourceSnapshot, fetcher: Fetcher, watch: CopyWatch
) -> tuple[int, tuple[int, ...]]:
    path = Path(local_path(target))
    receiver = Receiver(path, source.manifest, source.manifest_bytes, fetcher)
    receiver.refuse_others_parts(source.cache_id)
    is_whole = source.index is not None

    def look_at(row: IndexRow) -> list[str] | None:
        """What is wrong with the part that is there; None where none is."""
        return receiver.problems(row.part, row if is_whole else None) if receiver.has(row.part) else None

    def take(row: IndexRow) -> None:
        receiver.take_part(row.part, row if is_whole else None, damaged=row.part in repaired)

    looked = map_concurrently(look_at, source.rows, LOCAL_PARTS, fetcher.retry_policy)
    due = [row for row, wrong in zip(source.rows, looked, strict=True) if wrong is None or wrong]
    repaired = {row.part: wrong[0] for row, wrong in zip(source.rows, looked, strict=True) if wrong}
    for number, wrong in repaired.items():
        watch.say(f"part {number} is damaged and fetched again: {wrong}")
    n_bytes = sum(row.n_bytes for row in due)
    _check_space(path, n_bytes)
    watch.begin(len(due), n_bytes)
    receiver.take_shared(source.shared)
    map_concurrently(take, due, REMOTE_PARTS if is_url(source.store.url) else LOCAL_PARTS, fetcher.retry_policy)
    if source.index is not None:
        receiver.take_index(source.index)
    if source.signature is not None:
        receiver.take_signature(source.signature)
    receiver.tidy()
    return len(due), tuple(repaired)


def _into_url(target: str, source: SourceSnapshot, fetcher: Fetcher, watch: CopyWatch, mend: bool) -> int:
    if target.startswith(("http://", "https://")):
        raise ConfigError(f"{target} cannot be written to: a web server takes no files", hint="copy from it, not to it")
    retry_policy = fetcher.retry_policy.at(target)
    place = retry_policy.call(lambda: open_folder(target))
    sender = Sender(place=place, retry_policy=retry_policy, manifest=source.manifest, fetcher=fetcher, mend=mend)
    sender.begin(source.manifest_bytes)
    there = map_concurrently(sender.has, source.rows, REMOTE_PARTS, retry_policy)
    due = [row for row, is_there in zip(source.rows, there, strict=True) if not is_there]
    watch.begin(len(due), sum(row.n_bytes for row in due))
    sender.send_shared(source.shared)
    map_concurrently(sender.send_part, due, REMOTE_PARTS, retry_policy)
    if source.index is not None:
        sender.finish(source.index)
    if source.signature is not None:
        sender.sign(source.signature)
    return len(due)


def _check_space(path: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(path).free
    if free < n_bytes + SPARE_BYTES:
        raise CacheWriteError(
            f"{path} has {free:,} bytes free, {n_bytes + SPARE_BYTES:,} are needed: {n_bytes:,} for the copy and "
            f"{SPARE_BYTES:,} that stay free",
            hint=f"free {n_bytes + SPARE_BYTES - free:,} bytes, copy to another disk, or fewer parts (--parts)",
        )
