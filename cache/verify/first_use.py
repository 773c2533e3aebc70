"""Verification before use: every byte of a local cache is checked once per machine.

In: the address of a cache, and when to check it. Out: nothing, or an error for a damaged copy. Remote caches are
checked file by file as they are downloaded; unfinished ones have no cache_id to record.
"""

import os
import time
from pathlib import Path

from kdpipe.cache import layout
from kdpipe.cache.catalog import load_manifest
from kdpipe.cache.parts.index import read_index
from kdpipe.cache.stores.addresses import is_url
from kdpipe.cache.stores.dispatch import open_store
from kdpipe.cache.stores.local_store import LocalStore
from kdpipe.cache.stores.protocol import Store
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.cache.verify import verify_cache
from kdpipe.cache.verify.fast import FastCheck, fast_check
from kdpipe.cache.verify.full import byte_problems, shared_problems
from kdpipe.cache.verify.verified_log import VerifiedLog, state_of
from kdpipe.cache.writing.writer import CacheWriter
from kdpipe.schemas.choices import VerifyLevel, VerifyWhen
from kdpipe.schemas.errors import CacheDamaged, CacheError, CacheIncomplete, ConfigError, KdpipeError
from kdpipe.schemas.progress import Progress
from kdpipe.schemas.verify_report import Problem, VerifyReport


def check_before_use(url: str | os.PathLike[str], when: VerifyWhen | None, progress: Progress) -> None:
    """Check a cache unless it was checked before, and refuse a damaged one."""
    address = os.fspath(url)
    if is_url(address):
        if when is not None:
            raise ConfigError(
                f"--verify applies to local caches; parts of {address} are verified as they are downloaded",
                hint="omit --verify (cache.verify)",
            )
        return
    store = open_store(address)
    if when == "never":
        return
    if store.size(layout.INDEX) is None:
        if when == "always":
            raise CacheIncomplete(
                f"cannot verify an unfinished cache before use: {address}",
                hint="finish the cache, or omit --verify (cache.verify)",
            )
        return
    root = Path(store.url)
    log = _verified_log(root, read_index(store, load_manifest(store))[1], progress)
    state = state_of(root)
    if when != "always" and _is_recorded(log, state, progress):
        return
    _check(store, address, progress)
    _record(log, root, state, progress)


def verify_and_record(
    url: str, level: VerifyLevel, progress: Progress, retry_policy: RetryPolicy | None = None
) -> VerifyReport:
    """Verify a cache; a good local one is recorded, so that it is not checked again before its first use."""
    if is_url(url):
        return verify_cache(url, level, retry_policy, progress)
    store = open_store(url)
    if level == "fast":
        return verify_cache(url, level, progress=progress)
    root, state, reason = Path(store.url), None, ""
    try:
        state = state_of(root)
    except CacheError as error:  # probably a problem that the report names
        reason = error.message
    report = verify_cache(url, level, progress=progress)
    if report.ok and report.cache_id is not None:
        if state is None:
            progress.warning(f"could not record that the cache was verified; it will be checked again: {reason}")
        else:
            _record(_verified_log(root, report.cache_id, progress), root, state, progress)
    return report


def record_written(writer: CacheWriter, progress: Progress) -> None:
    """Record a cache as verified if this process wrote and digested all its parts."""
    if not writer.wrote_all:
        return
    store = LocalStore(writer.path)
    state = state_of(writer.path)
    check = fast_check(store)
    if not _damage(check) and not list(shared_problems(store, check)):
        assert check.cache_id is not None, "only a sealed cache has no problems"
        _record(_verified_log(writer.path, check.cache_id, progress), writer.path, state, progress)


def _verified_log(root: Path, cache_id: str, progress: Progress) -> VerifiedLog | None:
    """The log of this copy; None where no log can be kept."""
    try:
        return VerifiedLog(root, cache_id)
    except KdpipeError as error:
        progress.warning(f"cannot record verified caches; they will be checked again: {error.message}")
        return None


def _is_recorded(log: VerifiedLog | None, state: str, progress: Progress) -> bool:
    try:
        return log is not None and log.holds(state)
    except KdpipeError as error:
        progress.warning(f"cannot read the record of an earlier verification; checking again: {error.message}")
        return False


def _record(log: VerifiedLog | None, root: Path, state: str, progress: Progress) -> None:
    """Record a good cache, unless its files changed during the check."""
    if log is None:
        return
    if state_of(root) != state:
        progress.warning(f"files in {root} changed during verification; they will be checked again")
        return
    try:
        log.keep(state)
    except KdpipeError as error:
        progress.warning(f"could not record that the cache was verified; it will be checked again: {error.message}")


def _check(store: Store, address: str, progress: Progress) -> None:
    began = time.monotonic()
    check = fast_check(store)
    _refuse(address, _damage(check))
    n_parts, n_bytes = len(check.records), sum(record.n_bytes for record in check.records.values())
    progress.message(f"verifying {address} before its first use on this machine: {n_parts:,} parts, {n_bytes:,} bytes")
    for problems in byte_problems(store, check, progress):
        _refuse(address, problems)
    progress.message(f"{address} verified ({time.monotonic() - began:.1f} s)")


def _damage(check: FastCheck) -> list[Problem]:
    """The problems that affect reading: extra files do not."""
    return [problem for problem in check.problems if problem not in check.strays]


def _refuse(address: str, problems: list[Problem]) -> None:
    if problems:
        more = f", and {len(problems) - 1:,} more" if len(problems) > 1 else ""
        raise CacheDamaged(
            f"{address} is damaged: {problems[0]}{more}",
            hint=f"list all problems with `kdpipe cache verify {address}`; --repair-from SRC repairs from another copy",
        )
