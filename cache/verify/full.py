"""The full level: every byte of every file, and every checksum inside the shards.

In: a store and what the fast level found. Out: the problems in the files' bytes. Files are hashed on a few threads;
memory stays small, since they are mapped.
"""

import hashlib
import os
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from kdpipe.cache import layout
from kdpipe.cache.part_files import part_grids, part_problem
from kdpipe.cache.shards import Shard
from kdpipe.cache.store import Store
from kdpipe.cache.tokenizer_content import TOKENIZER
from kdpipe.cache.tokenizer_files import fingerprint_problem
from kdpipe.cache.verify.fast import COPY_AGAIN, Survey
from kdpipe.schemas.errors import CacheDamaged
from kdpipe.schemas.manifest import FileRecord, Manifest
from kdpipe.schemas.part import PartRecord
from kdpipe.schemas.report import Problem

FORGED = "do not use this copy: get the cache again from whoever made it"


class Views(Protocol):
    """Where files of a known size are viewed."""

    def view(self, name: str, size: int) -> memoryview:
        """A file as a whole; `CacheDamaged` where it is none of that size."""
        ...


def full_problems(store: Store, found: Survey) -> list[Problem]:
    """Hash every file of the cache."""
    return [problem for problems in byte_problems(store, found) for problem in problems]


def byte_problems(store: Store, found: Survey) -> Generator[list[Problem], None, None]:
    """The problems of the shared files, then those of each part; whoever asks for no more stops the work."""
    if found.manifest is None:
        return
    manifest = found.manifest
    yield list(shared_problems(store, found))
    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
    try:
        yield from pool.map(lambda record: part_bytes(store, manifest, record), found.records.values())
    finally:
        pool.shutdown(cancel_futures=True)


def shared_problems(store: Store, found: Survey) -> Iterable[Problem]:
    """The tokenizer's files and the tables, where the fast level has found nothing against them."""
    assert found.manifest is not None
    manifest = found.manifest
    known = {problem.file for problem in found.problems}
    files = {f"{layout.TOKENIZER}/{name}": file for name, file in manifest.tokenizer.files.items()}
    files |= {layout.table_file(name): file for name, file in (found.tables or {}).items()}
    for name, file in files.items():
        if name not in known:
            what = _wrong_bytes(store, name, file)
            if what:
                known.add(name)
                yield Problem(part=None, file=name, what=what, do=COPY_AGAIN)
    tokenizer = {name: f"{layout.TOKENIZER}/{name}" for name in manifest.tokenizer.files}
    if tokenizer and not known & {layout.TOKENIZER, *tokenizer.values()}:
        data = {name: bytes(store.view(path, files[path].bytes)) for name, path in tokenizer.items()}
        if what := fingerprint_problem(data, manifest.tokenizer.fingerprint):
            yield Problem(part=None, file=f"{layout.TOKENIZER}/{TOKENIZER}", what=what, do=FORGED)


def part_bytes(store: Views, manifest: Manifest, record: PartRecord) -> list[Problem]:
    """The files of a part: their digests, and where these hold, the checksums of their chunks."""
    problems = []
    grids = part_grids(manifest, record)
    arrays = {layout.array_shard(name): name for name in record.indexes}
    for name, file in sorted(record.files.items()):
        path = f"{layout.part_dir(record.part)}/{name}"
        what = _wrong_bytes(store, path, file)
        if what is None and name in arrays:
            array = arrays[name]
            what = _wrong_chunk(store.view(path, file.bytes), grids[array].n_chunks, record.indexes[array])
        if what is not None:
            problems.append(part_problem(record.part, name, what))
    return problems


def _wrong_bytes(store: Views, name: str, file: FileRecord) -> str | None:
    try:
        data = store.view(name, file.bytes)
    except CacheDamaged as error:
        return error.message
    if hashlib.sha256(data).hexdigest() != file.sha256:
        return "its bytes are not those that were written (sha256 differs)"
    return None


def _wrong_chunk(data: memoryview, n_chunks: int, index_sha256: str) -> str | None:
    try:
        shard = Shard(data, n_chunks, index_sha256)
    except CacheDamaged as error:
        return error.message
    for number in range(n_chunks):
        try:
            shard.chunk(number)
        except CacheDamaged as error:
            return f"chunk {number}: {error.message}"
    return None
