"""Small real caches, made in a few hundredths of a second, and the things tests do to them.

In: a folder and a recipe. Out: a sealed cache there, its cache_id, its bytes; single parts; damaged files.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from kdpipe.cache import layout
from kdpipe.cache.catalog import committed_parts, load_manifest
from kdpipe.cache.format.rows import Block, Sequence
from kdpipe.cache.opening import create_cache, open_cache
from kdpipe.cache.parts.part_files import examine_part
from kdpipe.cache.stores.local_store import LocalStore
from kdpipe.cache.writing.writer import CacheWriter
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.strict_json import canonical, sha256_file
from support.synthetic import Recipe, synthetic_manifest, synthetic_part, synthetic_tables

# Three parts of train and one of validation, about 500 rows in all, every kind of array but times and state.
SMALL = Recipe(
    vocabulary_size=300,
    documents={"train": 12, "validation": 4},
    documents_per_part=4,
    document_tokens=40,
    sequence_length=64,
    max_entries=16,
    hidden_width=8,
    text=True,
)

_manifests: dict[bytes, Manifest] = {}
_parts: dict[tuple[bytes, int], list[tuple[Sequence, Block]]] = {}


def manifest_of(recipe: Recipe = SMALL) -> Manifest:
    """The manifest that a recipe leads to, made once."""
    return _manifests.setdefault(_key(recipe), synthetic_manifest(recipe))


def part_of(recipe: Recipe, number: int) -> list[tuple[Sequence, Block]]:
    """The sequences and targets of a part, made once."""
    key = (_key(recipe), number)
    if key not in _parts:
        _parts[key] = list(synthetic_part(recipe, manifest_of(recipe), number))
    return _parts[key]


def _key(recipe: Recipe) -> bytes:
    return canonical(asdict(recipe))


def begin_cache(path: Path | str, recipe: Recipe = SMALL) -> CacheWriter:
    """A cache that has its manifest and tables, and the parts that were there before."""
    writer = create_cache(path, manifest_of(recipe))
    writer.publish_tables(synthetic_tables(recipe))
    return writer


def write_part(writer: CacheWriter, number: int, recipe: Recipe = SMALL) -> None:
    """Write and commit one part."""
    with writer.part(number) as part:
        for sequence, block in part_of(recipe, number):
            part.add(sequence, block)


def make_cache(path: Path | str, recipe: Recipe = SMALL) -> str:
    """A whole cache in a folder; its cache_id."""
    return resume_cache(path, recipe)


def resume_cache(path: Path | str, recipe: Recipe = SMALL) -> str:
    """Do what is left to do in a folder, as stage one does when it runs again; the cache_id."""
    writer = begin_cache(path, recipe)
    for number in writer.missing():
        write_part(writer, number, recipe)
    return writer.seal()


def copy_cache(source: Path, target: Path) -> Path:
    """A copy of a cache, to be damaged."""
    shutil.copytree(source, target)
    return target


def files_of(path: Path) -> list[str]:
    """The names of all files in a folder, relative and sorted, without those under work names."""
    found = (file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    return sorted(name for name in found if not name.startswith(f"{layout.WORK}/"))


def digests_of(path: Path) -> dict[str, str]:
    """The sha256 of every file of a cache: two caches with equal ones are equal to the byte."""
    return {name: sha256_file(path / name) for name in files_of(path)}


def problems_of_committed(path: Path) -> list[str]:
    """What is wrong with the parts that are there: record, listing, every file's digest, every row decoded."""
    store = LocalStore(path)
    manifest = load_manifest(store)
    problems: list[str] = []
    for number in committed_parts(store, manifest):
        record, found = examine_part(store, manifest, number, None)
        problems += map(str, found)
        folder = path / layout.part_dir(number)
        for name, file in record.files.items() if record else ():
            if sha256_file(folder / name) != file.sha256:
                problems.append(f"{folder / name}: other bytes than were written")
    if not problems:
        with_index = (path / layout.INDEX).exists()
        cache = open_cache(path, allow_partial=not with_index)
        if sum(len(rows) for rows in cache.scan()) != sum(row.n_rows for row in cache.parts):
            problems.append("other rows than the parts state")
    return problems


def content_of(path: Path) -> str:
    """A digest of everything a reader gives: equal for caches that say the same."""
    digest = hashlib.sha256()
    cache = open_cache(path)
    for i, rows in enumerate(cache):
        for name in (name for name in rows.__slots__ if name != "decode"):
            value: Any = getattr(rows, name)
            values = value.values() if isinstance(value, dict) else [value]
            for array in values:
                digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
        digest.update(repr((cache.columns(i), cache.digests(i))).encode())
    return digest.hexdigest()


def flip_bit(path: Path, place: int, bit: int = 0) -> None:
    """Change one bit of a file; a negative place counts from its end."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def truncate(path: Path, n_bytes: int) -> None:
    """Cut a number of bytes off the end of a file."""
    os.truncate(path, path.stat().st_size - n_bytes)


def extend(path: Path, data: bytes = b"\0") -> None:
    """Put bytes behind the end of a file."""
    with path.open("ab") as file:
        file.write(data)


def swap_files(one: Path, other: Path) -> None:
    """Exchange the contents of two files."""
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


@contextmanager
def unsynced() -> Iterator[None]:
    """Writing without waiting for the disk, where a test is about something else."""
    with mock.patch("os.fsync", lambda _descriptor: None):
        yield


def parts_in(path: Path) -> Iterable[int]:
    """The numbers of the committed parts of a cache."""
    store = LocalStore(path)
    return committed_parts(store, load_manifest(store))
