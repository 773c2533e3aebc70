"""Every reader of a cache, fuzzed: some hundred inputs in `make test`, minutes of them in `make soak`."""

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, standalone

from kdpipe.cache import layout
from kdpipe.cache.format.codecs import Pcodec
from kdpipe.cache.format.part_arrays import PartArray
from kdpipe.cache.format.zarr_json import ArrayGrid
from kdpipe.cache.inspect import inspect_cache
from kdpipe.cache.parts.index import parsed_index, sealed
from kdpipe.cache.parts.part_files import part_grids
from kdpipe.cache.parts.sequences import Sequences
from kdpipe.cache.parts.text import Texts
from kdpipe.cache.verify import verify_cache
from kdpipe.schemas.manifest import Manifest, read_manifest
from kdpipe.schemas.part import PartRecord
from kdpipe.schemas.records import read_record
from support.damage import edit_json, everything_of, fresh_cache, reseal, reseal_shard, tail_bytes
from support.fuzz import BATCH, LONG_BATCH, Reader, fuzz
from support.golden import caches
from support.limits import deep_problems_of

# Of `make soak`, for each reader.
SOAK_SECONDS = float(os.environ.get("KDPIPE_FUZZ_SECONDS", "600"))
QUICK_BATCHES = 2
PART = layout.part_dir(0)
RECORD = f"{PART}/{layout.PART_RECORD}"


def manifest_at(cache: Path) -> Manifest:
    """The manifest of a cache."""
    return read_manifest((cache / layout.MANIFEST).read_bytes(), layout.MANIFEST)


def record_at(cache: Path) -> PartRecord:
    """The record of its first part."""
    return read_record(PartRecord, (cache / RECORD).read_bytes(), RECORD)


def index_reader(folder: Path) -> Reader:
    """index.parquet of caches with one split and two."""
    cache = fresh_cache(folder / "cache")
    seeds = [(path / layout.INDEX).read_bytes() for path in (cache, *caches()[:2])]
    manifest = manifest_at(cache)
    return Reader("index", lambda data: parsed_index(sealed(data), manifest), tuple(seeds))


def sequences_reader(folder: Path) -> Reader:
    """sequences.arrow, every column of which is read."""
    cache = fresh_cache(folder / "cache")
    manifest, record = manifest_at(cache), record_at(cache)

    def read(data: bytes) -> None:
        places = Sequences(memoryview(data), manifest, record, layout.SEQUENCES)
        places.digests().sum()
        places.pooled(0, len(places.documents))
        for column in manifest.data.columns:
            places.column(column.name, 0, len(places.documents))

    return Reader("sequences", read, ((cache / PART / layout.SEQUENCES).read_bytes(),))


def text_reader(folder: Path) -> Reader:
    """text.arrow, all texts of which are unpacked."""
    cache = fresh_cache(folder / "cache")
    record = record_at(cache)
    n_documents = record.n_documents

    def read(data: bytes) -> None:
        Texts(memoryview(data), record.n_text_frames, n_documents, layout.TEXT).get(0, n_documents)

    return Reader("text", read, ((cache / PART / layout.TEXT).read_bytes(),))


def use(cache: Path) -> None:
    """Everything that is done with a cache; the first refusal ends it."""
    assert inspect_cache(cache).model_dump_json()
    assert verify_cache(cache, "full").model_dump_json()
    deep_problems_of(cache)
    everything_of(cache)


def record_reader(kind: str, file: str, folder: Path) -> Reader:
    """A record of a cache, to which all digests are fitted."""
    cache = fresh_cache(folder / "cache", kind)

    def read(data: bytes) -> None:
        fresh_cache(cache, kind)
        (cache / file).write_bytes(data)
        reseal(cache, chunks=False)
        use(cache)

    return Reader(f"{Path(file).stem}_{kind}", read, ((cache / file).read_bytes(),), is_json=True)


def zarr_json_reader(folder: Path) -> Reader:
    """zarr.json of an array, of the size in part.json."""
    cache = fresh_cache(folder / "cache")
    file = layout.array_metadata("id")

    def read(data: bytes) -> None:
        fresh_cache(cache)
        (cache / PART / file).write_bytes(data)
        edit_json(cache / RECORD, lambda r: r["files"][file].update(bytes=len(data)))
        reseal(cache, chunks=False)
        use(cache)

    return Reader("zarr_json", read, ((cache / PART / file).read_bytes(),), is_json=True)


def shard_reader(kind: str, array: str, folder: Path) -> Reader:
    """A shard, every chunk of which has its checksum and is decoded."""
    cache = fresh_cache(folder / "cache", kind)
    grid: ArrayGrid = part_grids(manifest_at(cache), record_at(cache))[array]
    shard = folder / "shard"

    def read(data: bytes) -> None:
        shard.write_bytes(data)
        digest = reseal_shard(shard, grid.n_chunks) if len(data) >= tail_bytes(grid.n_chunks) else "0" * 64
        found = PartArray(memoryview(shard.read_bytes()), grid, digest)
        for column in range(grid.n_columns):
            found.get(0, grid.shape[0], column)
        found.column_bytes()

    return Reader(f"shard_{array}", read, ((cache / PART / layout.array_shard(array)).read_bytes(),))


def chunk_reader(n: int, folder: Path) -> Reader:
    """A chunk of n numbers in every mode that pcodec has for them."""
    values = [np.arange(n) * 7 % (1 << 32), np.arange(n) ** 3 % 65_521, np.tile(np.arange(16) ** 5, n)[:n], np.zeros(n)]
    deltas = (DeltaSpec.no_op(), DeltaSpec.try_consecutive(2), DeltaSpec.try_lookback(), DeltaSpec.try_conv1(2))
    configs = [ChunkConfig(delta_spec=delta) for delta in deltas]
    configs.append(ChunkConfig(mode_spec=ModeSpec.try_int_mult(7)))
    seeds = [bytes(standalone.simple_compress(v.astype(np.uint32), config)) for v in values for config in configs]
    return Reader(f"chunk_{n}", lambda data: Pcodec(level=8).decode(data, np.empty(n, np.uint32)), tuple(seeds))


READERS = {
    "index.parquet": index_reader,
    "sequences.arrow": sequences_reader,
    "text.arrow": text_reader,
    "part.json": partial(record_reader, "threshold", RECORD),
    "manifest.json": partial(record_reader, "threshold", layout.MANIFEST),
    "manifest.json of states": partial(record_reader, "state", layout.MANIFEST),
    "zarr.json": zarr_json_reader,
    "shards of row": partial(shard_reader, "threshold", "row"),
    "shards of id": partial(shard_reader, "sampled", "id"),
    "shards of state": partial(shard_reader, "state", "state"),
    "chunks of 64": partial(chunk_reader, 64),
    "chunks of 65,536": partial(chunk_reader, 1 << 16),
}
# A cache is written, sealed, read and verified for each input.
SLOW_READERS = {name for name in READERS if ".json" in name}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW_READERS else ()) for name in READERS]
)
def test_a_reader_refuses_what_is_changed_at_random(tmp_path: Path, name: str) -> None:
    n_batches = 1 if name in SLOW_READERS else QUICK_BATCHES
    outcomes = fuzz(READERS[name](tmp_path), tmp_path, range(n_batches))
    assert outcomes.total() == n_batches * BATCH
    assert outcomes["refused"] > outcomes.total() / 4


FAULTS: dict[str, Callable[[], object]] = {
    "ended with -6": os.abort,
    "ZeroDivisionError": lambda: 1 // 0,
    "MemoryError": lambda: bytearray(2 << 30),
    "took [0-9,]+ bytes": lambda: bytearray(b"x") * (600 << 20),
    "UserWarning": lambda: warnings.warn("beware", stacklevel=1),
}


@pytest.mark.slow
@pytest.mark.parametrize("word", FAULTS)
def test_a_fault_in_a_reader_is_found_and_its_input_left(tmp_path: Path, word: str) -> None:
    reader = Reader("faulty", lambda data: FAULTS[word]() if len(data) > 70 else None, (b"x" * 70,))
    with pytest.raises(AssertionError, match=word):
        fuzz(reader, tmp_path, range(1), 20)
    assert all(len(file.read_bytes()) > 70 for file in tmp_path.glob("*-finding-*"))
    assert list(tmp_path.glob("*-finding-*"))


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", READERS)
def test_a_reader_refuses_what_is_changed_at_random_for_minutes(tmp_path: Path, name: str) -> None:
    end = time.monotonic() + SOAK_SECONDS

    def batches() -> Iterator[int]:
        for batch in count(QUICK_BATCHES):
            if time.monotonic() > end:
                return
            yield batch

    outcomes = fuzz(READERS[name](tmp_path), tmp_path, batches(), BATCH if name in SLOW_READERS else LONG_BATCH)
    assert outcomes.total() >= BATCH
    sys.stdout.write(f"{name}: {outcomes.total():,} inputs, {json.dumps(outcomes)}\n")
