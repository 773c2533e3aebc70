"""The bytes of a part's files against its record: digests, and where these hold, the checksums of chunks."""

import hashlib
from typing import Protocol

from kdpipe.cache import layout
from kdpipe.cache.format.shards import Shard
from kdpipe.cache.parts.part_files import part_grids, part_problem
from kdpipe.schemas.errors import CacheDamaged
from kdpipe.schemas.manifest import FileRecord, Manifest
from kdpipe.schemas.part import PartRecord
from kdpipe.schemas.verify_report import Problem


class Views(Protocol):
    """Where files of a known size are viewed."""

    def view(self, name: str, size: int) -> memoryview:
        """A file as a whole; raises `CacheDamaged` if its size is another."""
        ...


def part_bytes(store: Views, manifest: Manifest, record: PartRecord) -> list[Problem]:
    """The files of a part: their digests, and where these hold, the checksums of their chunks."""
    problems = []
    grids = part_grids(manifest, record)
    arrays = {layout.array_shard(name): name for name in record.indexes}
    for name, file in sorted(record.files.items()):
        path = f"{layout.part_dir(record.part)}/{name}"
        what = wrong_bytes(store, path, file)
        if what is None and name in arrays:
            array = arrays[name]
            what = _wrong_chunk(store.view(path, file.bytes), grids[array].n_chunks, record.indexes[array])
        if what is not None:
            problems.append(part_problem(record.part, name, what))
    return problems


def wrong_bytes(store: Views, name: str, file: FileRecord) -> str | None:
    """What is wrong with the size or digest of a file."""
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
