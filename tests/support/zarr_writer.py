"""A cache with shards of another writer: zarr-python itself, or ours with the chunks in another order.

In: a sealed cache and an empty place. Out: the same cache there with other bytes in its shards, sealed again.
"""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from kdpipe.cache import layout
from kdpipe.cache.catalog import load_manifest
from kdpipe.cache.format.codecs import crc32c
from kdpipe.cache.opening import create_cache
from kdpipe.cache.stores.local_store import LocalStore
from kdpipe.schemas.strict_json import canonical, sha256_file, sha256_hex

Shard = tuple[list[bytes], list[int]]
"""The chunks of a shard by number, and their numbers in the order in which the file has them."""


def by_zarr(source: Path, target: Path) -> str:
    """The cache with every shard written by zarr-python, from nothing but zarr.json and the numbers; the cache_id."""

    def chunks(folder: Path, array: str, n_chunks: int) -> Shard:
        data = _rewritten_by_zarr(folder, array)
        return _parsed(data, n_chunks, len(data) - 16 * n_chunks - 4)

    return _rewritten(source, target, chunks)


def shuffled(source: Path, target: Path, seed: int = 0) -> str:
    """The cache with the chunks of every shard in another order; the cache_id."""

    def chunks(folder: Path, array: str, n_chunks: int) -> Shard:
        data = (folder / layout.array_shard(array)).read_bytes()
        found, _ = _parsed(data, n_chunks, len(data) - 20 * n_chunks - 4)
        return found, np.random.default_rng([seed, n_chunks]).permutation(n_chunks).tolist()

    return _rewritten(source, target, chunks)


def _rewritten(source: Path, target: Path, chunks: Callable[[Path, str, int], Shard]) -> str:
    manifest = load_manifest(LocalStore(source))
    create_cache(target, manifest)
    shutil.copytree(source / layout.TABLES, target / layout.TABLES)
    for number in range(manifest.plan.n_parts):
        folder = target / layout.part_dir(number)
        shutil.copytree(source / layout.part_dir(number), folder)
        record = json.loads((folder / layout.PART_RECORD).read_bytes())
        for array in record["indexes"]:
            _put_shard(folder, array, record, chunks)
        (folder / layout.PART_RECORD).write_bytes(canonical(record))
    return create_cache(target, manifest).seal()


def _put_shard(folder: Path, array: str, record: Any, chunks: Callable[[Path, str, int], Shard]) -> None:
    path = folder / layout.array_shard(array)
    end, n_chunks = 0, _n_chunks(folder, array)
    found, order = chunks(folder, array, n_chunks)
    places = np.zeros((n_chunks, 2), "<u8")
    for number in order:
        places[number] = end, len(found[number])
        end += len(found[number])
    index = places.tobytes()
    tail = b"".join(chunk[-4:] for chunk in found) + index + crc32c(index)
    path.write_bytes(b"".join(found[number] for number in order) + tail)
    record["indexes"][array] = sha256_hex(tail)
    record["files"][layout.array_shard(array)] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    if array == "row":
        names = _columns(folder)
        sizes = places[:, 1].reshape(-1, len(names)).sum(axis=0).tolist()
        record["column_bytes"] = dict(zip(names, sizes, strict=True))


def _columns(folder: Path) -> list[str]:
    manifest = json.loads((folder.parents[1] / layout.MANIFEST).read_bytes())
    return [column["name"] for column in manifest["arrays"]["row"]["columns"]]


def _n_chunks(folder: Path, array: str) -> int:
    stated = json.loads((folder / layout.array_metadata(array)).read_bytes())
    sizes = stated["codecs"][0]["configuration"]["chunk_shape"]
    return int(np.prod([-(-length // size) for length, size in zip(stated["shape"], sizes, strict=True)]))


def _parsed(data: bytes, n_chunks: int, end: int) -> Shard:
    """The chunks of a shard whose last one ends before `end`."""
    places = np.frombuffer(data[-16 * n_chunks - 4 : -4], "<u8").reshape(n_chunks, 2).astype(np.int64)
    assert places.sum(axis=1).max() <= end
    return [data[offset : offset + size] for offset, size in places.tolist()], np.argsort(places[:, 0]).tolist()


def _rewritten_by_zarr(folder: Path, array: str) -> bytes:
    """The shard that zarr makes of the numbers that it reads."""
    metadata, shard = folder / layout.array_metadata(array), folder / layout.array_shard(array)
    with warnings.catch_warnings():
        # zarr warns that pcodec is not in its specification.
        warnings.simplefilter("ignore")
        numbers = np.asarray(_open(metadata.parent, "r")[...])
        shard.unlink()
        with zarr.config.set({"array.write_empty_chunks": True}):
            _open(metadata.parent, "r+")[...] = numbers
    return shard.read_bytes()


def _open(folder: Path, mode: Any) -> Any:
    return zarr.open_array(str(folder), mode=mode, zarr_format=3)
