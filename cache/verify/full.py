"""The full level: every byte of every file, and every checksum inside the shards.

In: a store and the result of the fast level. Out: problems in the files' bytes. Files are mapped and hashed on a few
threads, so memory stays small.
"""

import os
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor

from kdpipe.cache import layout
from kdpipe.cache.parts.part_bytes import part_bytes, wrong_bytes
from kdpipe.cache.parts.tokenizer_content import TOKENIZER
from kdpipe.cache.parts.tokenizer_files import fingerprint_problem
from kdpipe.cache.stores.protocol import Store
from kdpipe.cache.verify.fast import COPY_AGAIN, FastCheck
from kdpipe.schemas.progress import Progress, Task, tracked
from kdpipe.schemas.verify_report import Problem

FORGED = "do not use this copy: get the cache again from its author"


def full_problems(store: Store, check: FastCheck, progress: Progress) -> list[Problem]:
    """Problems in the bytes of all files."""
    return [problem for problems in byte_problems(store, check, progress) for problem in problems]


def byte_problems(store: Store, check: FastCheck, progress: Progress) -> Generator[list[Problem], None, None]:
    """The problems of the shared files, then those of each part; closing the generator stops the work."""
    if check.manifest is None:
        return
    manifest = check.manifest
    yield list(shared_problems(store, check))
    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
    try:
        by_part = pool.map(lambda record: part_bytes(store, manifest, record), check.records.values())
        yield from tracked(by_part, progress, Task.of_parts("verify", len(check.records)))
    finally:
        pool.shutdown(cancel_futures=True)


def shared_problems(store: Store, check: FastCheck) -> Iterable[Problem]:
    """Problems in tokenizer files and tables that passed the fast level."""
    assert check.manifest is not None
    manifest = check.manifest
    known = {problem.file for problem in check.problems}
    files = {f"{layout.TOKENIZER}/{name}": file for name, file in manifest.tokenizer.files.items()}
    files |= {layout.table_file(name): file for name, file in (check.tables or {}).items()}
    for name, file in files.items():
        if name not in known and (what := wrong_bytes(store, name, file)):
            known.add(name)
            yield Problem(part=None, file=name, what=what, do=COPY_AGAIN)
    tokenizer = {name: f"{layout.TOKENIZER}/{name}" for name in manifest.tokenizer.files}
    if tokenizer and not known & {layout.TOKENIZER, *tokenizer.values()}:
        data = {name: bytes(store.view(path, files[path].bytes)) for name, path in tokenizer.items()}
        if what := fingerprint_problem(data, manifest.tokenizer.fingerprint):
            yield Problem(part=None, file=f"{layout.TOKENIZER}/{TOKENIZER}", what=what, do=FORGED)
