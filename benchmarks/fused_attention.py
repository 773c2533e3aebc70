"""Muon on fused query, key and value: one matrix, or three separate parts.

In: the work folder of `optimizer_sweep.py`. Out: a line per student on stderr, a JSON document. Students are of the
GPT-2 family, whose attention has the three projections of a layer in one [width, 3 * width] matrix.
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from measure import machine, rounded
from optimizer_sweep import Cell, Sweep, open_sweep, print_progress
from torch import Tensor

from kdpipe.pipeline.training import muon

WIDTH, LAYERS, PARTS = 128, 4, 3
WAYS = ("whole", "parts")


class FusedSweep(Sweep):
    """Students of the GPT-2 family instead of Llamas."""

    def config(self, cell: Cell, place: Path) -> Path:
        config = place / "student.json"
        sizes = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": WIDTH // 32, "n_positions": 1024}
        dropout = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
        config.write_text(json.dumps({"model_type": "gpt2", **sizes, **dropout}), encoding="utf-8")
        return config


def by_part(matrix: Tensor) -> Tensor:
    """`orthogonalized`, with the three parts of a fused matrix treated separately."""
    if matrix.shape[-1] != PARTS * matrix.shape[-2]:
        return WHOLE(matrix)
    parts = torch.stack(matrix.chunk(PARTS, dim=-1))
    # Muon scales by the longer side, that of the fused matrix.
    return torch.cat(tuple(WHOLE(parts)), dim=-1) / PARTS**0.5


WHOLE = muon.orthogonalized


@contextmanager
def patched(way: str) -> Iterator[None]:
    """Train one student per seed, fused or in parts."""
    muon.orthogonalized = WHOLE if way == "whole" else by_part
    try:
        yield
    finally:
        muon.orthogonalized = WHOLE


def main() -> None:
    """Train the students and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="Folder of teacher and caches")
    parser.add_argument("--tokens", type=int, default=300_000, help="Tokens per student [300000]")
    parser.add_argument("--seeds", type=int, default=3, help="Seeds [3]")
    parser.add_argument("--quick", action="store_true", help="Tiny, for tests only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    known: dict[str, list[float]] = {way: [] for way in WAYS}
    sweep = open_sweep(arguments.work, FusedSweep, tokens=arguments.tokens, quick=arguments.quick)
    for seed in range(arguments.seeds):
        for way in WAYS:
            cell = Cell(size="1M", optimizer="muon", matrices=-2.0, tables=-1.0, tokens=arguments.tokens, seed=seed)
            with patched(way):
                result = sweep.train(cell)
            print_progress(f"  {way}, seed {seed}: {json.dumps(rounded(result))}")
            known[way].append(result["kl_teacher"])
    rows: dict[str, Any] = {
        way: {"kl": values, "mean": statistics.mean(values), "sd": statistics.stdev(values) if len(values) > 1 else 0.0}
        for way, values in known.items()
    }
    print(json.dumps(rounded({"machine": machine(), "torch": torch.__version__, "tokens": arguments.tokens, **rows})))


if __name__ == "__main__":
    main()
