"""Before a cache is used: every byte of it is checked once on this machine, and only once.

In: the address of a cache, and when it is to be checked. Out: nothing, or the refusal of a damaged copy. Caches behind
a URL are left to whoever fetches them, which checks each file; unfinished ones have no cache_id that could be
remembered.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from kdpipe.cache import layout
from kdpipe.cache.catalog import load_manifest
from kdpipe.cache.parts.index import read_index
from kdpipe.cache.stores.addresses import is_url
from kdpipe.cache.stores.dispatch import open_store
from kdpipe.cache.stores.local_store import LocalStore
from kdpipe.cache.stores.protocol import Store
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.cache.verify import verify_cache
from kdpipe.cache.verify.fast import FastCheck, survey
from kdpipe.cache.verify.full import byte_problems, shared_problems
from kdpipe.cache.verify.verified_log import VerifiedLog, state_of
from kdpipe.cache.writing.writer import CacheWriter
from kdpipe.schemas.choices import VerifyLevel, VerifyWhen
from kdpipe.schemas.errors import CacheDamaged, CacheError, CacheIncomplete, ConfigError, KdpipeError
from kdpipe.schemas.verify_report import Problem, VerifyReport

SECONDS_BETWEEN_LINES: Final = 30.0
Clock = Callable[[], float]


class VerifyProgress(Protocol):
    """Whoever follows."""

    def say(self, text: str) -> None:
        """Something worth a line."""
        ...

    def warn(self, text: str) -> None:
        """Something to look into."""
        ...


def check_before_use(
    url: str | os.PathLike[str],
    when: VerifyWhen | None,
    told: VerifyProgress,
    clock: Clock = time.monotonic,
) -> None:
    """Check a cache when that is due, and refuse a damaged one."""
    address = os.fspath(url)
    if is_url(address):
        if when is not None:
            raise ConfigError(
                f"when to check a cache is said of folders, and the parts of {address} are checked as they are fetched",
                hint="leave --verify (cache.verify) out",
            )
        return
    store = open_store(address)
    if when == "never":
        return
    if store.size(layout.INDEX) is None:
        if when == "always":
            raise CacheIncomplete(
                f"{address} is unfinished, and only a finished cache can be checked as a whole",
                hint="finish it, or leave --verify (cache.verify) out",
            )
        return
    root = Path(store.url)
    memory = _memory(root, read_index(store, load_manifest(store))[1], told)
    state = state_of(root)
    if when != "always" and _is_remembered(memory, state, told):
        return
    _check(store, address, told, clock)
    _remember(memory, root, state, told)


def verify_and_remember(
    url: str, level: VerifyLevel, told: VerifyProgress, retry_policy: RetryPolicy | None = None
) -> VerifyReport:
    """Verify a cache; a local one all of whose bytes were found good is not checked again before its first use."""
    if is_url(url):
        return verify_cache(url, level, retry_policy)
    store = open_store(url)
    if level == "fast":
        return verify_cache(url, level)
    root, state, why_not = Path(store.url), None, ""
    try:
        state = state_of(root)
    except CacheError as error:  # most likely a problem, which the report will name
        why_not = error.message
    report = verify_cache(url, level)
    if report.ok and report.cache_id is not None:
        if state is None:
            told.warn(f"that the cache is good could not be remembered: {why_not}")
        else:
            _remember(_memory(root, report.cache_id, told), root, state, told)
    return report


def remember_written(writer: CacheWriter, told: VerifyProgress) -> None:
    """Note that a cache is good when all its parts were written by this process, which knows their bytes."""
    if not writer.wrote_all:
        return
    store = LocalStore(writer.path)
    state = state_of(writer.path)
    found = survey(store)
    if not _damage(found) and not list(shared_problems(store, found)):
        assert found.cache_id is not None, "only a sealed cache has no problems"
        _remember(_memory(writer.path, found.cache_id, told), writer.path, state, told)


def _memory(root: Path, cache_id: str, told: VerifyProgress) -> VerifiedLog | None:
    """Where this copy is remembered; None where there is no such place."""
    try:
        return VerifiedLog(root, cache_id)
    except KdpipeError as error:
        told.warn(f"no cache that is found good can be remembered: {error.message}")
        return None


def _is_remembered(memory: VerifiedLog | None, state: str, told: VerifyProgress) -> bool:
    try:
        return memory is not None and memory.holds(state)
    except KdpipeError as error:
        told.warn(f"what is remembered of this cache is of no use, it is checked again: {error.message}")
        return False


def _remember(memory: VerifiedLog | None, root: Path, state: str, told: VerifyProgress) -> None:
    """Remember a good cache, if its files are still those that were looked at."""
    if memory is None:
        return
    if state_of(root) != state:
        told.warn(f"files of {root} were changed while they were checked: they are checked again the next time")
        return
    try:
        memory.keep(state)
    except KdpipeError as error:
        told.warn(f"that the cache is good could not be remembered, it is checked again the next time: {error.message}")


def _check(store: Store, address: str, told: VerifyProgress, clock: Clock) -> None:
    began = shown = clock()
    found = survey(store)
    _refuse(address, _damage(found))
    n_parts, n_bytes = len(found.records), sum(record.n_bytes for record in found.records.values())
    told.say(f"every byte of {address} is checked before its first use here: {n_parts:,} parts, {n_bytes:,} bytes")
    for n_done, problems in enumerate(byte_problems(store, found)):
        _refuse(address, problems)
        if clock() - shown >= SECONDS_BETWEEN_LINES:
            shown = clock()
            told.say(f"{n_done:,} of {n_parts:,} parts are checked")
    told.say(f"{address} is as it was written ({clock() - began:.1f} s)")


def _damage(found: FastCheck) -> list[Problem]:
    """The problems that a reader would meet: what only lies beside the files of a cache is none."""
    return [problem for problem in found.problems if problem not in found.strays]


def _refuse(address: str, problems: list[Problem]) -> None:
    if problems:
        more = f", and {len(problems) - 1:,} more" if len(problems) > 1 else ""
        raise CacheDamaged(
            f"{address} is damaged: {problems[0]}{more}",
            hint=f"`kdpipe cache verify {address}` names all that is wrong, and with --repair-from SRC it fetches that "
            "again from another copy",
        )
