"""`verify_cache`: lists every problem of a cache at one of three levels.

In: a path or URL and a level. Out: a `VerifyReport`. `fast.py` checks records, names and sizes; `full.py` every byte;
`deep.py` every row, in a child process with limits; `duplicates.py` all documents.
"""

import os
import threading
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import get_args

from kdpipe.cache.durable.scratch import scratch_folder
from kdpipe.cache.stores.addresses import is_url
from kdpipe.cache.stores.dispatch import open_store
from kdpipe.cache.stores.local_store import LocalStore
from kdpipe.cache.stores.protocol import Store
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.cache.verify.deep import decoded
from kdpipe.cache.verify.duplicates import Duplicates
from kdpipe.cache.verify.fast import FastCheck, fast_check
from kdpipe.cache.verify.full import full_problems, shared_problems
from kdpipe.cache.verify.journal import journal_notes
from kdpipe.cache.verify.once import CachedFiles
from kdpipe.schemas.choices import VerifyLevel
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.part import PartRecord
from kdpipe.schemas.progress import Progress, SilentProgress, Task, tracked
from kdpipe.schemas.verify_report import Note, Problem, VerifyReport


def verify_cache(
    url: str | os.PathLike[str],
    level: VerifyLevel = "full",
    retry_policy: RetryPolicy | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Check a cache; parts with problems at the fast level are not checked any deeper."""
    if level not in get_args(VerifyLevel):
        raise ConfigError(
            f"unknown verification level {level!r}", hint=f"the levels are {', '.join(get_args(VerifyLevel))}"
        )
    # A request to stop ends this verification only.
    retry_policy = replace(retry_policy or RetryPolicy(), stop=threading.Event())
    store, progress = open_store(url, retry_policy), progress or SilentProgress()
    if is_url(store.url):
        return _verify_remote(CachedFiles(store), level, retry_policy, progress)
    check = fast_check(store)
    problems, notes = list(check.problems), list[Note]()
    if level != "fast" and check.manifest is not None:
        problems += full_problems(store, check, progress)
        notes += journal_notes(store, check)
        if level == "deep":
            bad = {problem.part for problem in problems}
            good = [record for number, record in sorted(check.records.items()) if number not in bad]
            more_problems, more_notes = _deeper(store, check.manifest, good, good, progress)
            problems, notes = problems + more_problems, notes + more_notes
    return _report(check, level, problems, notes)


def _verify_remote(
    store: CachedFiles, level: VerifyLevel, retry_policy: RetryPolicy, progress: Progress
) -> VerifyReport:
    """Check a remote cache, whose parts are downloaded to a temporary folder; the deep level decodes them there."""
    from kdpipe.cache.verify.remote_parts import DOING, RemoteParts, free_bytes, most_at_once

    remote = RemoteParts(store, level, retry_policy, progress)
    check = fast_check(store, remote.examine)
    problems, notes = list(check.problems), list[Note]()
    if level == "fast" or check.manifest is None:
        return _report(check, level, problems, notes)
    notes += journal_notes(store, check)
    records = [record for _, record in sorted(check.records.items())]
    if level == "full":
        problems += [*shared_problems(store, check), *remote.byte_problems(check.manifest, records)]
        return _report(check, level, problems, notes)
    n_bytes = most_at_once(check.manifest, records)
    with scratch_folder("kdpipe-verify-", DOING, n_bytes) as folder:
        room = free_bytes(folder, check.manifest, records)
        retry_policy.report(f"{DOING}: up to {n_bytes:,} bytes at a time in {folder}")
        problems += shared_problems(store.keeping(folder), check)
        with closing(remote.local(check.manifest, records, folder, room, problems)) as good:
            more_problems, more_notes = _deeper(LocalStore(folder), check.manifest, records, good, progress)
    return _report(check, level, problems + more_problems, notes + more_notes)


def _deeper(
    store: Store,
    manifest: Manifest,
    records: Sequence[PartRecord],
    coming: Iterable[PartRecord],
    progress: Progress,
) -> tuple[list[Problem], list[Note]]:
    """Problems and notes from the rows and documents of parts, whose records come when they are in the store."""
    problems, by_number = list[Problem](), {record.part: record for record in records}
    largest = max((record.n_bytes for record in records), default=0)
    duplicates = Duplicates(manifest)
    with closing(decoded(store.url, (record.part for record in coming), largest)) as parts:
        for number, part_problems in tracked(parts, progress, Task.of_parts("decode", len(records))):
            problems += part_problems
            if not part_problems:
                duplicates.add(store, by_number[number])
    more_problems, notes = duplicates.findings()
    return problems + more_problems, notes


def _report(check: FastCheck, level: VerifyLevel, problems: list[Problem], notes: list[Note]) -> VerifyReport:
    return VerifyReport(
        ok=not problems,
        level=level,
        cache_id=check.cache_id,
        parts=len(check.records),
        bytes=sum(record.n_bytes + len(record.to_json()) for record in check.records.values()),
        problems=tuple(problems),
        notes=tuple(notes),
    )
