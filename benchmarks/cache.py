"""Cache benchmarks: bytes per position, read and write rates, opening time, memory.

In: nothing; synthetic caches are made in a temporary folder. Out: one JSON document, with rates of plain copies for
comparison. `--quick` runs a small version, for tests.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
from measure import in_child, machine, memcpy_rate, pin_to_one_core, rounded, seconds

from kdpipe.cache import open_cache
from kdpipe.cache.format.codecs import CHECKSUM_BYTES, Pcodec
from kdpipe.cache.format.decode import Decoder
from kdpipe.cache.format.quantizers import to_codes
from kdpipe.cache.format.ragged import Ragged, differences
from kdpipe.cache.format.rows import Block, Rows, Sequence
from kdpipe.cache.format.shards import PLACE_BYTES, Shard
from kdpipe.cache.inspect import inspect_cache
from kdpipe.cache.opening import create_cache
from kdpipe.cache.parts.part_files import part_grids
from kdpipe.cache.parts.part_reader import PartReader
from kdpipe.cache.reader import Cache
from kdpipe.pipeline.batches.collate import BatchContents, make_batch

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.synthetic import Recipe, synthetic_manifest, synthetic_part, synthetic_tables

TESTS = str(Path(__file__).parents[1] / "tests")
Pairs = list[tuple[Sequence, Block]]
TARGETS = {
    "sequential_10_entries": 1.0e6,
    "sequential_32_entries": 0.5e6,
    "batched": 0.5e6,
    "random_block_over_memmap": 10,
    "ids_and_values_over_order0": 1.05,
    "scalar_bytes": 2.0,
    "token_mask_length_bytes": 3.0,
    "overhead_share": 0.01,
    "open_1000_parts_seconds": 0.1,
    "memory_growth": 1.1,
    "written_positions": 0.2e6,
}
PEAK = """
def peak():
    # ru_maxrss is inherited from the parent process; VmHWM starts at zero.
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
"""
OPENING = """
import json, sys, time
from kdpipe.cache import open_cache
start = time.perf_counter()
cache = open_cache(sys.argv[1])
print(json.dumps({"seconds": time.perf_counter() - start, "parts": len(cache.parts)}))
"""
SCANNING = """
import json, sys
from kdpipe.cache import open_cache
rows = sum(len(block) for block in open_cache(sys.argv[1]).scan())
print(json.dumps({"rows": rows, "peak_bytes": peak()}))
"""
WRITING = """
import json, sys
from pathlib import Path
from kdpipe.cache.opening import create_cache
sys.path.append(sys.argv[4])
from support.synthetic import Recipe, synthetic_manifest, synthetic_part, synthetic_tables
recipe = Recipe(documents={"train": int(sys.argv[2])}, documents_per_part=int(sys.argv[3]), hidden=False)
manifest = synthetic_manifest(recipe)
writer = create_cache(Path(sys.argv[1]), manifest)
writer.publish_tables(synthetic_tables(recipe))
for number in range(manifest.plan.n_parts):
    with writer.part(number) as part:
        for sequence, block in synthetic_part(recipe, manifest, number):
            part.add(sequence, block)
print(json.dumps({"peak_bytes": peak()}))
"""


def main() -> None:
    """Run all measurements and print them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="Small caches, for tests only")
    scale = 0.02 if parser.parse_args().quick else 1.0
    pin_to_one_core()
    result: dict[str, Any] = {"machine": machine(), "memcpy_bytes_per_second": memcpy_rate(), "targets": TARGETS}
    with tempfile.TemporaryDirectory() as folder:
        result["cases"] = [measure_case(Path(folder), case, scale) for case in cases(scale)]
        result["many_parts"] = measure_many_parts(Path(folder), scale)
        result["writing_memory"] = measure_writing_memory(Path(folder), scale)
    print(json.dumps(rounded(result), indent=2))


def cases(scale: float) -> Iterator[dict[str, Any]]:
    """Caches of one part: about 10 entries per position at two vocabulary sizes, and about 32."""
    # Documents longer than a sequence, so that nearly every block has its 1,024 rows.
    base = Recipe(
        documents={"train": int(600 * scale) + 1},
        documents_per_part=10**6,
        document_tokens=3000,
        sequence_length=1024,
        hidden=False,
    )
    yield {"name": "10 entries, 32 k", "recipe": base}
    yield {"name": "10 entries, 152 k", "recipe": replace(base, vocabulary_size=152_000)}
    yield {
        "name": "32 entries, 32 k",
        "recipe": replace(base, tau=1 / 105, max_entries=128, documents={"train": int(300 * scale) + 1}),
    }


def measure_case(folder: Path, case: dict[str, Any], scale: float) -> dict[str, Any]:
    """Write a cache, then measure its size and all ways to read it."""
    recipe: Recipe = case["recipe"]
    manifest = synthetic_manifest(recipe)
    pairs = list(synthetic_part(recipe, manifest, 0))
    tables = synthetic_tables(recipe)
    path = folder / case["name"].replace(" ", "-").replace(",", "")
    positions = sum(int(sequence.loss_mask.sum()) for sequence, _ in pairs)
    written = write_seconds(path, recipe, pairs, tables)
    cache = open_cache(path)
    return {
        "case": case["name"],
        "positions": positions,
        "entries": inspect_cache(path).model_dump()["entries_per_position"],
        "written_positions_per_second": positions / written,
        "bytes": bytes_of(cache, path, pairs, tables),
        "reading": reading_of(cache, folder, positions),
    }


def write_seconds(path: Path, recipe: Recipe, pairs: Pairs, tables: dict[str, npt.NDArray[Any]]) -> float:
    """Seconds to write one part, with fsync: the median of three caches."""
    manifest = synthetic_manifest(recipe)
    number = iter(range(100))
    writers = []

    def write() -> None:
        writer = create_cache(path.with_name(f"{path.name}-{next(number)}"), manifest)
        writer.publish_tables(tables)
        with writer.part(0) as part:
            for sequence, block in pairs:
                part.add(sequence, block)
        writers.append(writer)

    taken = seconds(write, rounds=3)
    writers[-1].seal()
    writers[-1].path.rename(path)
    return taken


def bytes_of(cache: Cache, path: Path, pairs: Pairs, tables: dict[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """Bytes per position by array, and the order-0 entropy of ids and values."""
    record = cache.part(0).record
    summary = inspect_cache(path)
    per = summary.bytes_per_position
    grids = part_grids(cache.manifest, record).values()
    n_chunks = sum(grid.n_chunks for grid in grids)
    frame = n_chunks * (CHECKSUM_BYTES + PLACE_BYTES) + sum(len(grid.to_json()) for grid in grids)
    scalars = {name: size / record.n_positions for name, size in record.column_bytes.items()}
    tokens = sum(record.column_bytes[name] for name in ("token", "loss_mask", "token_bytes"))
    return {
        "per_position": per,
        "columns": scalars,
        "token_mask_length_per_row": tokens / record.n_rows,
        "overhead_share": (frame + len(record.to_json())) / summary.bytes,
        **entropies(cache, pairs, tables, per["id"] + per["logprob"]),
    }


def entropies(cache: Cache, pairs: Pairs, tables: dict[str, npt.NDArray[Any]], stored: float) -> dict[str, float]:
    """Order-0 entropies in bytes per position, and the ratio of coded heads and sorted tails to theirs."""
    array, id_array = cache.manifest.arrays.logprob, cache.manifest.arrays.id
    assert array is not None and id_array is not None
    ragged = Ragged.of(
        *(np.concatenate([getattr(block, name) for _, block in pairs]) for name in ("n_exact", "n_draws"))
    )
    rank_of_id = np.empty(len(tables["ids_by_rank"]), np.uint32)
    rank_of_id[tables["ids_by_rank"]] = np.arange(len(rank_of_id), dtype=np.uint32)
    ranks = rank_of_id[np.concatenate([block.ids for _, block in pairs])]
    values = np.concatenate([block.logprobs for _, block in pairs])[~ragged.is_draw]
    rows = np.repeat(np.arange(len(ragged.counts), dtype=np.int64), ragged.n_draws)
    tails = np.sort((rows << 32) | ranks[ragged.is_draw]) - (rows << 32)
    n, heads = cache.n_positions, ranks[~ragged.is_draw]
    ids, logprobs = order0_bytes(ranks), order0_bytes(to_codes(array.quantizer, values, "logprobs"))
    return {
        "order0_ids": ids / n,
        "order0_values": logprobs / n,
        "ids_and_values_over_order0": stored * n / (ids + logprobs),
        "heads_over_order0": coded_bytes(heads, id_array.chunk_entries, id_array.level) / order0_bytes(heads),
        "sorted_tails_over_order0": coded_bytes(
            differences(tails.astype(np.uint32), ragged.n_draws), id_array.chunk_entries, id_array.level
        )
        / order0_bytes(tails.astype(np.uint32)),
    }


def order0_bytes(codes: npt.NDArray[np.uint32]) -> float:
    """Size of a perfect coder that knows the distribution of single codes."""
    counts = np.bincount(codes)
    share = counts[counts > 0] / len(codes)
    return float(-(share * np.log2(share)).sum() * len(codes) / 8)


def coded_bytes(codes: npt.NDArray[np.uint32], chunk: int, level: int) -> int:
    """Size of a stream in chunks, as stored in a cache."""
    codec = Pcodec(level=level)
    return sum(len(codec.encode(codes[n : n + chunk])) + CHECKSUM_BYTES for n in range(0, len(codes), chunk))


def reading_of(cache: Cache, folder: Path, positions: int) -> dict[str, Any]:
    """Read rates with checksums, on one core, files in the page cache."""
    order = np.random.default_rng(0).permutation(len(cache))
    groups = [order[start : start + 8] for start in range(0, len(order) - 7, 8)] or [np.resize(order, 8)]
    in_groups = sum(int(cache[int(i)].loss_mask.sum()) for group in groups for i in group)
    copies = MemmapTwin(cache, folder)
    random_blocks = seconds(lambda: [cache[int(i)] for i in order])
    memmap_blocks = seconds(lambda: [copies.copy(int(i)) for i in order])
    return {
        "sequential_positions_per_second": positions / seconds(lambda: sum(len(rows) for rows in cache.scan())),
        "one_by_one_positions_per_second": positions / seconds(lambda: sum(len(rows) for rows in cache)),
        "random_positions_per_second": positions / random_blocks,
        "random_block_seconds": random_blocks / len(order),
        "memmap_block_seconds": memmap_blocks / len(order),
        "random_block_over_memmap": random_blocks / memmap_blocks,
        "random_block_profile_seconds": profile_of(cache, order),
        "decoded_bytes_per_block": copies.n_bytes / len(order),
        "batched_positions_per_second": in_groups
        / seconds(lambda: [make_batch(cache, group.tolist(), BatchContents(targets=True)) for group in groups]),
    }


def profile_of(cache: Cache, order: npt.NDArray[np.int64]) -> dict[str, float]:
    """Seconds per step of a random block; timers add a few microseconds, and columns and streams include chunks."""
    steps = {
        "columns": (PartReader, "_columns"),
        "ids_and_values": (PartReader, "codes"),
        "chunks_and_checksums": (Shard, "chunk"),
        "entries": (Decoder, "entries"),
        "scalars": (Decoder, "scalars"),
    }
    spent = dict.fromkeys(steps, 0.0)
    with ExitStack() as stack:
        for step, (owner, name) in steps.items():
            stack.enter_context(mock.patch.object(owner, name, timed(getattr(owner, name), spent, step)))
        for i in order.tolist():
            cache[i]
    return {step: seconds_spent / len(order) for step, seconds_spent in spent.items()}


def timed(function: Callable[..., Any], spent: dict[str, float], step: str) -> Callable[..., Any]:
    """The function, with its time added to `spent`."""

    def call(*arguments: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            spent[step] += time.perf_counter() - start

    return call


class MemmapTwin:
    """The same decoded arrays in plain files, as a baseline without compression and checks."""

    def __init__(self, cache: Cache, folder: Path) -> None:
        arrays: dict[str, list[npt.NDArray[Any]]] = {}
        for rows in cache:
            for name, values in arrays_of(rows):
                arrays.setdefault(name, []).append(values)
        self.n_bytes = 0
        self._parts = []
        for name, pieces in arrays.items():
            path = folder / f"{name}.plain"
            joined = np.concatenate(pieces)
            joined.tofile(path)
            self.n_bytes += joined.nbytes
            ends = np.cumsum([len(piece) for piece in pieces])
            places = list(zip((ends - [len(piece) for piece in pieces]).tolist(), ends.tolist(), strict=True))
            self._parts.append((np.memmap(path, joined.dtype, "r"), places))

    def copy(self, i: int) -> list[npt.NDArray[Any]]:
        """A copy of the arrays of one sequence."""
        return [np.array(data[slice(*places[i])]) for data, places in self._parts]


def arrays_of(rows: Rows) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Every array of a sequence, by name."""
    for name in Rows.__slots__:
        value = getattr(rows, name)
        if isinstance(value, np.ndarray):
            yield name, value
        elif isinstance(value, dict):
            yield from ((f"{name}@{key}", inner) for key, inner in value.items())


def measure_many_parts(folder: Path, scale: float) -> dict[str, Any]:
    """Time to open a cache of 1,000 parts, and peak memory of reading 100 and 1,000 parts."""
    small, large = max(4, int(100 * scale)), max(40, int(1000 * scale))
    sizes = {}
    for n_parts in (small, large):
        path = folder / f"parts-{n_parts}"
        write_equal_parts(path, n_parts)
        sizes[n_parts] = in_child(PEAK + SCANNING, str(path))
    openings = [in_child(OPENING, str(folder / f"parts-{large}")) for _ in range(5)]
    return {
        "parts": openings[0]["parts"],
        "open_seconds": float(np.median([opening["seconds"] for opening in openings])),
        "peak_bytes": {str(n): peaks["peak_bytes"] for n, peaks in sizes.items()},
        "memory_growth": sizes[large]["peak_bytes"] / sizes[small]["peak_bytes"],
    }


def write_equal_parts(path: Path, n_parts: int) -> None:
    """Many parts with the same data and different document numbers."""
    recipe = Recipe(documents={"train": 10 * n_parts}, documents_per_part=10, hidden=False)
    manifest = synthetic_manifest(recipe)
    pairs = list(synthetic_part(recipe, manifest, 0))
    writer = create_cache(path, manifest)
    writer.publish_tables(synthetic_tables(recipe))
    for number in range(n_parts):
        with writer.part(number) as part:
            for sequence, block in pairs:
                part.add(replace(sequence, documents=sequence.documents + 10 * number), block)
    writer.seal()


def _written_peak(folder: Path, documents: int, per_part: int) -> int:
    peak: int = in_child(PEAK + WRITING, str(folder), str(documents), str(per_part), TESTS)["peak_bytes"]
    return peak


def measure_writing_memory(folder: Path, scale: float) -> dict[str, Any]:
    """Peak memory of writing one part, ten such parts, and one part of ten times the length."""
    n = max(10, int(200 * scale))
    peaks = {
        name: _written_peak(folder / name.replace(" ", "-"), documents, per_part)
        for name, documents, per_part in (
            ("one part", n, n),
            ("ten parts", 10 * n, n),
            ("one long part", 10 * n, 10 * n),
        )
    }
    return {"peak_bytes": peaks, "growth_with_parts": peaks["ten parts"] / peaks["one part"]}


if __name__ == "__main__":
    main()
