"""Which optimizer and learning rates fresh students want, by size: a search on a grid whose best cell is inside.

In: nothing; text comes with Python, the teacher is trained once in `--work`. Out: one JSON document, on stderr a line
per student. Results are kept one line each in `--work`: run again, it resumes; several processes may share the folder.
Rates are on a grid of half decades: from a start, the
neighbors of the best cell are trained until none is better; the best three are confirmed by more seeds.
"""

import argparse
import fcntl
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from measure import machine, rounded
from one_student import trained_and_measured
from recovery_inputs import Caches, Texts
from stage_one_inputs import trained_teacher

from kdpipe.cache import open_cache
from kdpipe.pipeline.small_teacher import Sizes
from kdpipe.schemas.stage_two import StageTwo

# Half decades: 1e-3, 3.2e-3, 1e-2, ... as powers of ten.
STEP = 0.5
CONFIRMED, CONFIRMING_SEEDS = 3, (0, 1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A Llama of some width and depth."""

    width: int
    layers: int


# Parameters at 4,096 ids with one table: 0.1, 1, 3, 10 and 30 M.
SHAPES = {
    "0.1M": Shape(width=24, layers=2),
    "1M": Shape(width=128, layers=3),
    "3M": Shape(width=256, layers=3),
    "10M": Shape(width=448, layers=4),
    "30M": Shape(width=704, layers=5),
}
STARTS = {"muon": (-2.0, -1.0), "adamw": (-2.5, -1.5)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One student: learning rates as powers of ten; `vectors` None is the rate of matrices."""

    size: str
    optimizer: Literal["muon", "adamw"]
    matrices: float
    tables: float
    vectors: float | None = None
    alpha: float = 0.1
    tied: bool = True
    tokens: int = 300_000
    batch: int = 8
    seed: int = 0

    def neighbors(self) -> Iterator["Cell"]:
        """The eight cells around."""
        for up in (-STEP, 0.0, STEP):
            for side in (-STEP, 0.0, STEP):
                if (up, side) != (0.0, 0.0):
                    yield replace(self, matrices=self.matrices + up, tables=self.tables + side)


class Sweep:
    """Students of a sweep, each trained once, its result a line in a file that processes share."""

    def __init__(self, work: Path, caches: Caches, texts: Texts, precision: str) -> None:
        self._work, self._caches, self._texts, self._precision = work, caches, texts, precision
        self._file = work / f"sweep-{precision}.jsonl"
        self.trained = 0

    def value(self, cell: Cell) -> float:
        """The exact KL to the teacher on validation, trained when it is not known yet."""
        found = self.results().get(cell)
        if found is None:
            found = self._train(cell)
            self.trained += 1
            with self._file.open("a", encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.write(json.dumps({**asdict(cell), **found}) + "\n")
            say(f"  {cell}: KL {found['kl_teacher']:.4f}, CE {found['cross_entropy']:.4f}, {found['seconds']:.0f} s")
        return float(found["kl_teacher"])

    def results(self) -> dict[Cell, dict[str, Any]]:
        """All that is known."""
        if not self._file.exists():
            return {}
        names = Cell.__dataclass_fields__.keys()
        lines = [json.loads(line) for line in self._file.read_text(encoding="utf-8").splitlines()]
        return {Cell(**{name: line[name] for name in names}): line for line in lines}

    def search(self, start: Cell) -> list[Cell]:
        """Cells from the best on, once none around the best is better."""
        best, seen = start, {start: self.value(start)}
        while True:
            seen |= {cell: self.value(cell) for cell in best.neighbors()}
            winner = min(seen, key=seen.__getitem__)
            if winner == best:
                return sorted(seen, key=seen.__getitem__)
            best = winner

    def confirmed(self, cells: list[Cell]) -> list[dict[str, Any]]:
        """The best cells by several seeds, the best first."""
        rows = []
        for cell in cells[:CONFIRMED]:
            seeds = [replace(cell, seed=seed) for seed in CONFIRMING_SEEDS]
            values = [self.value(one) for one in seeds]
            known = self.results()
            rows.append(
                {
                    **asdict(cell),
                    "kl_mean": statistics.mean(values),
                    "kl_sd": statistics.stdev(values),
                    "ce_mean": statistics.mean(known[one]["cross_entropy"] for one in seeds),
                    "agreement_mean": statistics.mean(known[one]["top1_agreement"] for one in seeds),
                }
            )
        return sorted(rows, key=lambda row: row["kl_mean"])

    def _train(self, cell: Cell) -> dict[str, Any]:
        texts = replace(self._texts, tokens=cell.tokens)
        state = open_cache(str(self._caches.of("state", texts)), "validation")
        cache = self._caches.of("standard", texts)
        with tempfile.TemporaryDirectory(dir=self._work) as place:
            return trained_and_measured(self._settings(cell, str(cache), Path(place)), state)

    def _settings(self, cell: Cell, cache: str, place: Path) -> StageTwo:
        config, shape = place / "student.json", SHAPES[cell.size]
        config.write_text(json.dumps(student_config(shape, tied=cell.tied)), encoding="utf-8")
        never = {"every": 1_000_000}
        vectors = cell.matrices if cell.vectors is None else cell.vectors
        rates = {"matrices": 10**cell.matrices, "tables": 10**cell.tables, "vectors": 10**vectors}
        return StageTwo.model_validate(
            {
                "cache": {"path": cache},
                "student": {"name": str(config)},
                "losses": {"alpha": cell.alpha},
                "optimizer": {"kind": cell.optimizer, "rates": rates},
                "run": {"epochs": 1, "batch_size": cell.batch},
                "evaluation": never | {"limit": 1},
                "saving": never,
                "machine": {"device": "cpu", "threads": torch.get_num_threads(), "precision": self._precision},
                "out": str(place / "run"),
                "seed": cell.seed,
            }
        )


def student_config(shape: Shape, *, tied: bool) -> dict[str, Any]:
    """A Llama with heads of 32, or one head where it is narrower."""
    heads = max(1, shape.width // 32)
    return {
        "model_type": "llama",
        "hidden_size": shape.width,
        "intermediate_size": max(16, shape.width * 8 // 3 // 16 * 16),
        "num_hidden_layers": shape.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 2),
        "max_position_embeddings": 2048,
        "tie_word_embeddings": tied,
    }


def say(text: str) -> None:
    """A line for the person who waits."""
    print(text, file=sys.stderr, flush=True)


def options() -> argparse.Namespace:
    """What is swept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="Folder of teacher, caches and results; resumes there")
    parser.add_argument("--sizes", nargs="+", default=list(SHAPES), choices=SHAPES, help="Student sizes [all]")
    parser.add_argument("--optimizers", nargs="+", default=list(STARTS), choices=STARTS, help="Optimizers [both]")
    parser.add_argument("--tokens", type=int, default=300_000, help="Tokens per student [300000]")
    parser.add_argument("--teacher-steps", type=int, default=3000, help="Training steps of the teacher [3000]")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"], help="Of the students [fp32]")
    parser.add_argument("--threads", type=int, default=1, help="Threads per process [1]")
    parser.add_argument("--quick", action="store_true", help="Tiny: shows that it runs, measures nothing")
    return parser.parse_args()


def main() -> None:
    """Sweep and print."""
    words = options()
    torch.set_num_threads(words.threads)
    sizes = Sizes(vocabulary=4096, width=256, layers=4, context=256, batch=8, steps=words.teacher_steps, rate=3e-3)
    if words.quick:
        sizes = Sizes(vocabulary=600, width=32, layers=1, context=64, batch=4, steps=5)
    work = words.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    teacher, unseen = trained_teacher(work, sizes, None, say)
    own = work / f"sweep-of-{teacher.name}"
    (own / "caches").mkdir(parents=True, exist_ok=True)
    texts = Texts(tokens=words.tokens, validation=1_000 if words.quick else 24_000, length=sizes.context)
    sweep = Sweep(own, Caches(own, teacher, unseen, words.threads, say), texts, words.precision)
    found = {}
    for size in words.sizes:
        for optimizer in words.optimizers:
            matrices, tables = STARTS[optimizer]
            start = Cell(size=size, optimizer=optimizer, matrices=matrices, tables=tables, tokens=words.tokens)
            found[f"{size} {optimizer}"] = sweep.confirmed(sweep.search(start))
    document = {"machine": machine(), "torch": torch.__version__, "precision": words.precision, "best": found}
    print(json.dumps(rounded(document), indent=1))


if __name__ == "__main__":
    main()
