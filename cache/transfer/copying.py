"""`copy_cache`: copies a cache between folders and URLs, checks every file, and resumes after an interruption.

In: two addresses. Out: an identical cache at the second, and a `CopyReport`. The manifest is copied first, each part
appears once it is complete and checked, the index is last: the copy is consistent at any time.
"""

import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from kdpipe.cache.catalog import load_manifest
from kdpipe.cache.fetch.file import Fetcher
from kdpipe.cache.fetch.receiver import Receiver
from kdpipe.cache.fetch.source import SourceSnapshot, read_source
from kdpipe.cache.parts.index import IndexRow
from kdpipe.cache.reshape.sources import is_inside
from kdpipe.cache.stores.addresses import check_address, is_url, local_path
from kdpipe.cache.stores.dispatch import open_folder, open_store
from kdpipe.cache.stores.retries import RetryPolicy, map_concurrently
from kdpipe.cache.transfer.part_selection import select_parts
from kdpipe.cache.transfer.sending import Sender
from kdpipe.schemas.copy_report import CopyReport, PartSelection
from kdpipe.schemas.counts import counted
from kdpipe.schemas.errors import CacheDamaged, CacheWriteError, ConfigError
from kdpipe.schemas.progress import Progress, SilentProgress, Task, TaskUpdate, running

# Parts copied at once from a URL, where requests are slow, and from a disk.
REMOTE_PARTS: Final = 8
LOCAL_PARTS: Final = 2
# Kept free on the target disk.
SPARE_BYTES: Final = 16 << 20


@dataclass(slots=True)
class CopyTally:
    """Counts of a copy in progress, from several threads; negative bytes were wrong and are copied again."""

    progress: Progress
    bytes: int = 0
    redownloaded: int = 0
    is_begun: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def moved(self, n_bytes: int) -> None:
        with self.lock:
            self.bytes += n_bytes
            if self.is_begun:
                self.progress.update(TaskUpdate(done=self.bytes))

    @contextmanager
    def copying(self, rows: Sequence[IndexRow]) -> Iterator[None]:
        """Report the progress of copying these parts."""
        n_bytes = sum(row.n_bytes for row in rows)
        note = f"{counted(len(rows), 'part')} to copy, {n_bytes:,} bytes" if rows else "nothing to copy"
        task = Task(name="copy", unit="bytes", total=self.bytes + n_bytes, note=note)
        with running(self.progress, task):
            with self.lock:
                self.is_begun = True
            yield

    def restarted(self) -> None:
        """Count a file that is downloaded again from its beginning."""
        with self.lock:
            self.redownloaded += 1


def copy_cache(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    selection: PartSelection | None = None,
    repair: bool = False,
    allow_partial: bool = False,
    retry_policy: RetryPolicy | None = None,
    progress: Progress | None = None,
) -> CopyReport:
    """Copy a cache, or the parts that a copy lacks or has damaged; with a selection, make a smaller cache.

    `repair` checks every byte of the target, and reuses the selection that the target was made with.
    """
    began = time.monotonic()
    first, second, selection = os.fspath(source), os.fspath(target), selection or PartSelection()
    _check_places(first, second, selection, allow_partial)
    retry_policy = replace(retry_policy or RetryPolicy(), stop=threading.Event())
    if progress is not None:
        retry_policy = replace(retry_policy, report=progress.message)
    progress = progress or SilentProgress()
    tally, retry_policy = CopyTally(progress), retry_policy.at(first)
    store = open_store(first, retry_policy)
    fetcher = Fetcher(
        store=store, retry_policy=retry_policy, moved=tally.moved, report=progress.message, on_restart=tally.restarted
    )
    snapshot = fetcher.read_checked(lambda: read_source(store, allow_partial=allow_partial))
    if repair:
        selection = _previous_selection(second, snapshot, retry_policy)
    made_from = None
    if selection != PartSelection():
        made_from = snapshot.cache_id
        snapshot, fetcher = select_parts(snapshot, selection, fetcher)
    repaired: tuple[int, ...] = ()
    if is_url(second):
        copied = _into_url(second, snapshot, fetcher, tally, repair)
    else:
        copied, repaired = _into_folder(second, snapshot, fetcher, tally)
    return CopyReport(
        source=store.url,
        target=second,
        cache_id=snapshot.cache_id,
        selection=str(selection) or None,
        made_from=made_from,
        parts=len(snapshot.rows),
        copied=copied,
        repaired=repaired,
        redownloaded=tally.redownloaded,
        bytes=tally.bytes,
        seconds=time.monotonic() - began,
    )


def _check_places(source: str, target: str, selection: PartSelection, allow_partial: bool) -> None:
    check_address(source)
    check_address(target)
    if is_inside(target, source):
        raise ConfigError(f"the destination {target} is inside the source", hint="choose another destination")
    if allow_partial and selection != PartSelection():
        raise ConfigError(
            f"cannot select {selection} from an unfinished cache: the result would look complete",
            hint="wait until the cache is finished, and omit --allow-partial",
        )


def _previous_selection(target: str, source: SourceSnapshot, retry_policy: RetryPolicy) -> PartSelection:
    """The selection with which the target was made from this source; everything where it was not."""
    try:
        history = load_manifest(open_store(target, retry_policy)).history
    except (CacheDamaged, ConfigError):  # the copy reports or repairs it
        return PartSelection()
    origin = history[-1] if history else None
    if origin is None or origin.action != "copy" or origin.caches != (source.cache_id,):
        return PartSelection()
    return PartSelection.of(origin.note) or PartSelection()


def _into_folder(
    target: str, source: SourceSnapshot, fetcher: Fetcher, tally: CopyTally
) -> tuple[int, tuple[int, ...]]:
    path = Path(local_path(target))
    receiver = Receiver(path, source.manifest, source.manifest_bytes, fetcher)
    receiver.refuse_other_parts(source.cache_id)
    is_whole = source.index is not None

    def problems_of(row: IndexRow) -> list[str] | None:
        """The problems of the part in the target; None where it is missing."""
        return receiver.problems(row.part, row if is_whole else None) if receiver.has(row.part) else None

    def take(row: IndexRow) -> None:
        receiver.take_part(row.part, row if is_whole else None, damaged=row.part in repaired)

    checked = list(
        zip(source.rows, map_concurrently(problems_of, source.rows, LOCAL_PARTS, fetcher.retry_policy), strict=True)
    )
    to_copy = [row for row, problems in checked if problems is None or problems]
    repaired = {row.part: problems[0] for row, problems in checked if problems}
    for number, problem in repaired.items():
        tally.progress.message(f"part {number} is damaged and is copied again: {problem}")
    _check_space(path, sum(row.n_bytes for row in to_copy))
    with tally.copying(to_copy):
        receiver.take_shared(source.shared)
        map_concurrently(take, to_copy, REMOTE_PARTS if is_url(source.store.url) else LOCAL_PARTS, fetcher.retry_policy)
        if source.index is not None:
            receiver.take_index(source.index)
        if source.signature is not None:
            receiver.take_signature(source.signature)
    receiver.tidy()
    return len(to_copy), tuple(repaired)


def _into_url(target: str, source: SourceSnapshot, fetcher: Fetcher, tally: CopyTally, repair: bool) -> int:
    if target.startswith(("http://", "https://")):
        raise ConfigError(
            f"cannot copy to a web server: {target}", hint="choose a folder, a bucket or hf:// as destination"
        )
    retry_policy = fetcher.retry_policy.at(target)
    remote = retry_policy.call(lambda: open_folder(target))
    sender = Sender(remote=remote, retry_policy=retry_policy, manifest=source.manifest, fetcher=fetcher, repair=repair)
    sender.begin(source.manifest_bytes)
    present = map_concurrently(sender.has, source.rows, REMOTE_PARTS, retry_policy)
    to_copy = [row for row, is_present in zip(source.rows, present, strict=True) if not is_present]
    with tally.copying(to_copy):
        sender.send_shared(source.shared)
        map_concurrently(sender.send_part, to_copy, REMOTE_PARTS, retry_policy)
        if source.index is not None:
            sender.finish(source.index)
        if source.signature is not None:
            sender.sign(source.signature)
    return len(to_copy)


def _check_space(path: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(path).free
    if free < n_bytes + SPARE_BYTES:
        raise CacheWriteError(
            f"not enough space in {path}: {free:,} bytes free, {n_bytes + SPARE_BYTES:,} needed ({n_bytes:,} for the "
            f"copy, {SPARE_BYTES:,} as reserve)",
            hint=f"free {n_bytes + SPARE_BYTES - free:,} bytes, choose another disk, or copy fewer parts (--parts)",
        )
