"""The parts of a cache behind a URL: several at once, each file asked for once, through a temporary folder.

In: a store, the manifest, the numbers of the parts. Out: the record of each and its problems, at the fast level or byte
for byte. A copy asks for no less: each zarr.json follows from the manifest and the record, so neither reads it. Memory
stays small, since files go to the disk as they come and are removed with their part.
"""

import mmap
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, final

from kdpipe.cache import layout
from kdpipe.cache.http import HttpStore
from kdpipe.cache.index import IndexRow
from kdpipe.cache.part_files import compare_listing, examine_record, metadata_files, part_problem
from kdpipe.cache.retries import Patience, each
from kdpipe.cache.store import Store
from kdpipe.cache.transfer.fetching import Fetcher
from kdpipe.cache.verify.full import part_bytes
from kdpipe.cache.verify.once import AskedOnce
from kdpipe.schemas.errors import CacheDamaged
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.part import PartRecord
from kdpipe.schemas.report import Level, Problem

# Parts at once, as many as a copy brings.
AT_ONCE: Final = 8
Examined = tuple[PartRecord | None, list[Problem]]


@final
class RemoteParts:
    """Examines parts of a cache at a level; the deep level begins with every byte."""

    def __init__(self, store: AskedOnce, level: Level, patience: Patience) -> None:
        self._asked, self._store, self._level, self._patience = store, store.store, level, patience

    def examine(self, manifest: Manifest, numbers: Sequence[int], rows: Mapping[int, IndexRow]) -> list[Examined]:
        """The record and the problems of each."""
        listed = self._asked.listed_parts()
        return each(
            lambda number: self._examined(manifest, number, rows.get(number), listed),
            numbers,
            AT_ONCE,
            self._patience,
        )

    def _examined(
        self, manifest: Manifest, number: int, row: IndexRow | None, listed: Mapping[str, dict[str, int]] | None
    ) -> Examined:
        record, problems = examine_record(self._store, manifest, number, row)
        if record is None:
            return None, problems
        folder = layout.part_dir(number)
        made = metadata_files(manifest, record)
        if listed is not None:
            problems = compare_listing(number, record, dict(listed.get(folder, {})))
            if problems:  # a listing keeps quiet about folders that it may not see: this one is asked for by itself
                try:
                    problems = compare_listing(number, record, self._store.walk(folder))
                except CacheDamaged as error:
                    return None, [part_problem(number, "", error.message)]
        elif self._level == "fast":
            asked = {name: self._store.size(f"{folder}/{name}") for name in record.files if name not in made}
            there = {f"{folder}/{name}": len(data) for name, data in made.items()}
            there |= {f"{folder}/{name}": size for name, size in asked.items() if size is not None}
            problems = compare_listing(number, record, there)
        for name, data in made.items():
            if len(data) != record.files[name].bytes:
                problems.append(part_problem(number, name, "it does not describe the array that the manifest does"))
        if not problems and self._level != "fast":
            with tempfile.TemporaryDirectory(prefix="kdpipe-verify-") as folder_here:
                problems = part_bytes(
                    _Fetched(self._store, self._patience, record, made, Path(folder_here)), manifest, record
                )
        return record, problems


@final
class _Fetched:
    """The files of one part, each fetched when it is first viewed."""

    def __init__(
        self,
        store: Store,
        patience: Patience,
        record: PartRecord,
        made: Mapping[str, bytes],
        folder: Path,
    ) -> None:
        self._files = {f"{layout.part_dir(record.part)}/{name}": file for name, file in record.files.items()}
        self._made = {f"{layout.part_dir(record.part)}/{name}": data for name, data in made.items()}
        self._fetcher, self._folder = Fetcher(store=store, patience=patience), folder
        self._here: dict[str, memoryview] = {}

    def view(self, name: str, size: int) -> memoryview:
        """A file that has come, or is made from the record."""
        if name in self._made:
            return memoryview(self._made[name])
        if name not in self._here:
            path = self._folder / f"{len(self._here)}"
            store = self._fetcher.store
            self._fetcher.fetch(name, self._files[name], path)
            length = store.length_seen() if isinstance(store, HttpStore) and size else None
            if length is not None and length != size:
                raise CacheDamaged(f"the file has {length:,} bytes, {size:,} were written")
            if not size:
                return memoryview(b"")
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
            self._here[name] = memoryview(mapped)
        return self._here[name]
