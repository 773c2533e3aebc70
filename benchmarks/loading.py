"""Loading rates by target kind, threads and order, compared with the rate of a student.

In: nothing; the cache is synthetic, with entries per position as in the standard profile. Out: one JSON document,
positions per second. `--quick` runs a small version, for tests.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measure import machine, rounded

from kdpipe.cache import open_cache
from kdpipe.cache.opening import create_cache
from kdpipe.pipeline.batches.batch_order import ordering
from kdpipe.pipeline.batches.collate import BatchContents
from kdpipe.pipeline.batches.prefetch import StepLoader

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.synthetic import Recipe, synthetic_manifest, synthetic_part, synthetic_tables

TARGETS = BatchContents(targets=True, statistics=True)
CASES = {
    "threshold": TARGETS,
    "topk": TARGETS,
    "labels_alone": BatchContents(),
    "with_hidden": replace(TARGETS, hidden=(4,)),
}
BATCH = 8


def measured(path: Path, wants: BatchContents, threads: int, n_steps: int) -> dict[str, float]:
    """Positions per second, wall-clock and CPU, of a loop that only loads steps."""
    cache = open_cache(path, "train")
    order = ordering(cache, "shuffled", 0)
    positions = 0
    with StepLoader(cache, wants, batch_size=BATCH, ahead=4 * threads, threads=threads) as loader:
        loader.take(0, BATCH, order)
        start, cpu = time.perf_counter(), time.process_time()
        for step in range(1, n_steps + 1):
            positions += loader.take(step * BATCH, (step + 1) * BATCH, order).n_positions
        taken, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"positions_per_second": positions / taken, "positions_per_cpu_second": positions / cpu}


def make(path: Path, recipe: Recipe) -> None:
    """A synthetic cache in a folder."""
    manifest = synthetic_manifest(recipe)
    writer = create_cache(path, manifest)
    writer.publish_tables(synthetic_tables(recipe))
    for number in writer.missing():
        with writer.part(number) as part:
            for sequence, block in synthetic_part(recipe, manifest, number):
                part.add(sequence, block)
    writer.seal()


def student_takes(parameters: float, flops: float) -> float:
    """Positions per second of a student with 6 operations per parameter and position (Kaplan et al. 2020)."""
    return flops / (6 * parameters)


def main() -> None:
    """Measure all cases and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="Small, for tests only")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    recipe = Recipe(documents={"train": 40}, documents_per_part=20, vocabulary_size=2_000)
    if not arguments.quick:
        recipe = Recipe(documents={"train": 4_000}, documents_per_part=1_000)
    rates: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("threshold", "topk"):
            make(Path(folder) / kind, replace(recipe, kind=kind))
        for case, wants in CASES.items():
            path = Path(folder) / (case if case == "topk" else "threshold")
            for threads in arguments.threads:
                rates[f"{case}, {threads} threads"] = measured(path, wants, threads, 4 if arguments.quick else 150)
    takes = {
        "100 M parameters, CPU of 100 GFLOP/s": student_takes(1e8, 1e11),
        "100 M parameters, GPU of 400 TFLOP/s": student_takes(1e8, 4e14),
    }
    print(json.dumps(rounded({"machine": machine(), "torch": torch.__version__, "loaded": rates, "taken": takes})))


if __name__ == "__main__":
    main()
