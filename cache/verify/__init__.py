"""`verify_cache`: names every problem of a cache, at the depth that is asked for.

In: a path or URL and a level. Out: a `VerifyReport`.
Before it: `reader.py`'s loading. After it: `cli/cache/verify.py`. `fast.py` looks at records, names and sizes;
`full.py` at every byte; `deep.py` at every row, in a child process with limits; `duplicates.py` at all documents.
"""

import os
import threading
from dataclasses import replace
from typing import get_args

from kdpipe.cache.addresses import is_url
from kdpipe.cache.retries import Patience
from kdpipe.cache.store import open_store
from kdpipe.cache.verify.deep import deep_problems
from kdpipe.cache.verify.duplicates import find_duplicates
from kdpipe.cache.verify.fast import Survey, survey
from kdpipe.cache.verify.full import full_problems, shared_problems
from kdpipe.cache.verify.journal import journal_notes
from kdpipe.cache.verify.once import AskedOnce
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.report import Level, Note, Problem, VerifyReport


def verify_cache(url: str | os.PathLike[str], level: Level = "full", patience: Patience | None = None) -> VerifyReport:
    """Check a cache; parts that the fast level finds bad are not looked at any deeper."""
    if level not in get_args(Level):
        raise ConfigError(f"there is no level {level!r}", hint=f"the levels are {', '.join(get_args(Level))}")
    patience = patience or Patience()
    store = open_store(url, patience)
    if is_url(store.url):
        from kdpipe.cache.verify.remote_parts import RemoteParts

        store = AskedOnce(store)
        found = survey(store, RemoteParts(store, level, replace(patience, stop=threading.Event())).examine)
    else:
        found = survey(store)
    problems, notes = list(found.problems), list[Note]()
    if level in ("full", "deep") and found.manifest is not None:
        # Behind a URL parts were read as they were surveyed.
        problems += shared_problems(store, found) if is_url(store.url) else full_problems(store, found)
        notes += journal_notes(store, found)
    if level == "deep" and found.manifest is not None:
        bad = {problem.part for problem in problems if problem.part is not None}
        problems += deep_problems(store.url, [number for number in found.records if number not in bad], patience)
        bad = {problem.part for problem in problems if problem.part is not None}
        good = [record for number, record in sorted(found.records.items()) if number not in bad]
        more_problems, more_notes = find_duplicates(store, found.manifest, good)
        problems, notes = problems + more_problems, notes + more_notes
    return _report(found, level, problems, notes)


def _report(found: Survey, level: Level, problems: list[Problem], notes: list[Note]) -> VerifyReport:
    return VerifyReport(
        ok=not problems,
        level=level,
        cache_id=found.cache_id,
        parts=len(found.records),
        bytes=sum(record.n_bytes for record in found.records.values()),
        problems=tuple(problems),
        notes=tuple(notes),
    )
