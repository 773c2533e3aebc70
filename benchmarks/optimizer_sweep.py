"""Grid search for optimizer and learning rates by kind and size of student.

In: nothing; text ships with Python, the teacher is trained once in `--work`. Out: one JSON document, on stderr a line
per student. Results are appended to a file in `--work`: run again to resume; several processes may share the folder.
Learning rates are on a grid of half decades: from a start, the neighbors of the best cell along each axis and diagonal
are trained until none is better; the best cells are repeated with more seeds.
"""

import argparse
import fcntl
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from measure import machine, rounded
from one_student import trained_and_measured
from recovery_inputs import TEACHER, Caches, Texts
from stage_one_inputs import trained_teacher

from kdpipe.cache import open_cache
from kdpipe.pipeline.cache_teacher import cache_teacher
from kdpipe.pipeline.small_teacher import TeacherSizes
from kdpipe.pipeline.train import train
from kdpipe.schemas.capture_settings import CaptureOptions, CaptureSettings
from kdpipe.schemas.progress import SilentProgress
from kdpipe.schemas.train_settings import TrainOptions, TrainSettings

# Half decades: 1e-3, 3.2e-3, 1e-2, ... as powers of ten.
STEP = 0.5
CONFIRMING_SEEDS = (0, 1, 2)
ENTROPY_NATS = 3.0
Kind = Literal["fresh", "pretrained", "lora"]
OptimizerKind = Literal["muon", "adamw"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A Llama of some width and depth."""

    width: int
    layers: int


# Parameters at a vocabulary of 4,096 with tied embeddings: 0.1, 1, 3, 10 and 30 M.
SHAPES = {
    "0.1M": Shape(width=24, layers=2),
    "1M": Shape(width=128, layers=3),
    "3M": Shape(width=256, layers=3),
    "10M": Shape(width=448, layers=4),
    "30M": Shape(width=704, layers=5),
}
# Starting points for matrices and tables.
STARTS: dict[tuple[Kind, OptimizerKind], tuple[float, float]] = {
    ("fresh", "muon"): (-2.0, -1.0),
    ("fresh", "adamw"): (-2.5, -1.5),
    ("pretrained", "muon"): (-2.5, -2.5),
    ("pretrained", "adamw"): (-3.0, -2.5),
    ("lora", "muon"): (-2.5, -2.5),
    ("lora", "adamw"): (-2.5, -2.5),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One student: learning rates as powers of ten; `vectors` None is the learning rate of matrices."""

    size: str
    kind: Kind = "fresh"
    optimizer: OptimizerKind
    matrices: float
    tables: float
    vectors: float | None = None
    alpha: float = 0.1
    tied: bool = True
    tokens: int = 300_000
    batch: int = 8
    seed: int = 0

    def neighbors(self) -> Iterator["Cell"]:
        """The neighbors along each axis and diagonal; LoRA trains no tables."""
        for step in (STEP, -STEP):
            yield replace(self, matrices=self.matrices + step)
            if self.kind != "lora":
                yield replace(self, tables=self.tables + step)
                yield replace(self, matrices=self.matrices + step, tables=self.tables + step)


class Sweep:
    """Students of a sweep; results are appended to a file that processes share."""

    def __init__(self, work: Path, teacher: Path, caches: Caches, texts: Texts, precision: str) -> None:
        self._work, self._teacher, self._precision = work, teacher, precision
        self._caches, self._texts = caches, texts
        self._file = work / f"sweep-{precision}.jsonl"
        self.trained = 0

    def value(self, cell: Cell) -> float:
        """The exact KL to the teacher on validation; trains the student if necessary."""
        result = self.results().get(cell)
        if result is None:
            result = self.train(cell)
            self.trained += 1
            with self._file.open("a", encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.write(json.dumps({**asdict(cell), **result}) + "\n")
            print_progress(
                f"  {cell}: KL {result['kl_teacher']:.4f}, CE {result['cross_entropy']:.4f}, {result['seconds']:.0f} s"
            )
        return float(result["kl_teacher"])

    def results(self) -> dict[Cell, dict[str, Any]]:
        """All finished results."""
        if not self._file.exists():
            return {}
        names = Cell.__dataclass_fields__.keys()
        lines = [json.loads(line) for line in self._file.read_text(encoding="utf-8").splitlines()]
        return {Cell(**{name: line[name] for name in names}): line for line in lines}

    def search(self, start: Cell) -> list[Cell]:
        """Search until no neighbor of the best cell is better; cells, best first."""
        best, seen = start, {start: self.value(start)}
        while True:
            seen |= {cell: self.value(cell) for cell in best.neighbors()}
            winner = min(seen, key=seen.__getitem__)
            if winner == best:
                return sorted(seen, key=seen.__getitem__)
            best = winner

    def confirmed(self, cells: list[Cell], n_best: int) -> list[dict[str, Any]]:
        """Repeat the best cells with several seeds; best first."""
        rows = []
        for cell in cells[:n_best]:
            seeds = [replace(cell, seed=seed) for seed in CONFIRMING_SEEDS]
            values = [self.value(cell) for cell in seeds]
            known = self.results()
            rows.append(
                {
                    **asdict(cell),
                    "kl_mean": statistics.mean(values),
                    "kl_sd": statistics.stdev(values),
                    "ce_mean": statistics.mean(known[cell]["cross_entropy"] for cell in seeds),
                    "agreement_mean": statistics.mean(known[cell]["top1_agreement"] for cell in seeds),
                }
            )
        return sorted(rows, key=lambda row: row["kl_mean"])

    def train(self, cell: Cell) -> dict[str, Any]:
        """Train one student and evaluate it."""
        texts = replace(self._texts, tokens=cell.tokens)
        state = open_cache(str(self._caches.of("state", texts)), "validation")
        cache = self._caches.of("standard", texts)
        with tempfile.TemporaryDirectory(dir=self._work) as place:
            name = self._pretrained(cell) if cell.kind != "fresh" else self.config(cell, Path(place))
            return trained_and_measured(self._settings(cell, str(cache), name, Path(place) / "run"), state)

    def config(self, cell: Cell, place: Path) -> Path:
        """Write the config of a student with random init."""
        config = place / "student.json"
        config.write_text(json.dumps(student_config(SHAPES[cell.size], tied=cell.tied)), encoding="utf-8")
        return config

    def _pretrained(self, cell: Cell) -> Path:
        """A student of this size pretrained on labels of the teacher's own text, twice as many tokens; made once."""
        out = self._work / f"pretrained-{cell.size}-{cell.tokens}"
        if not out.is_dir():
            print_progress(f"  pretraining a student of {cell.size}")
            matrices, tables = STARTS["fresh", "muon"]
            first = replace(cell, kind="fresh", optimizer="muon", matrices=matrices, tables=tables, seed=100)
            with tempfile.TemporaryDirectory(dir=self._work) as place:
                run = Path(place) / "run"
                settings = self._settings(first, str(self._tokens()), self.config(first, Path(place)), run)
                steps = 2 * cell.tokens // (cell.batch * self._texts.length)
                changes: dict[str, Any] = {
                    "losses": settings.losses.model_copy(update={"mode": "output"}),
                    "run": settings.run.model_copy(update={"epochs": None, "max_steps": max(2, steps)}),
                }
                train(settings.model_copy(update=changes), TrainOptions(), SilentProgress())
                os.replace(run / "final", out)
        return out

    def _tokens(self) -> Path:
        """The text that the teacher was trained on, as a cache without targets; made once."""
        path = self._work / "caches" / "tokens"
        if not path.is_dir():
            work = path.with_name(f"{path.name}.tmp-{os.getpid()}")
            corpus = self._work.parent / f"{self._teacher.name.split('-at-')[0]}.jsonl"
            settings = {
                "data": {"path": str(corpus), "val_fraction": 0.0},
                "teacher": {"tokenizer": str(self._teacher)},
                "targets": {"kind": "none"},
                "sequences": {"length": self._texts.length},
                "machine": {"devices": "cpu", "threads": torch.get_num_threads()},
                "out": str(work),
            }
            cache_teacher(CaptureSettings.model_validate(settings), CaptureOptions(), SilentProgress())
            os.replace(work, path)
        return path

    def _settings(self, cell: Cell, cache: str, student: Path, out: Path) -> TrainSettings:
        never = {"every": 1_000_000}
        vectors = cell.matrices if cell.vectors is None else cell.vectors
        rates = {"matrices": 10**cell.matrices, "tables": 10**cell.tables, "vectors": 10**vectors}
        return TrainSettings.model_validate(
            {
                "cache": {"path": cache},
                "student": {"name": str(student), "lora": cell.kind == "lora"},
                "losses": {"alpha": cell.alpha},
                "optimizer": {"kind": cell.optimizer, "rates": rates},
                "run": {"epochs": 1, "batch_size": cell.batch},
                "evaluation": never | {"limit": 1},
                "saving": never,
                "machine": {"device": "cpu", "threads": torch.get_num_threads(), "precision": self._precision},
                "out": str(out),
                "seed": cell.seed,
            }
        )


def student_config(shape: Shape, *, tied: bool) -> dict[str, Any]:
    """A Llama with heads of width 32, or one head if it is narrower."""
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


def open_sweep(
    work: Path, of: type[Sweep], *, tokens: int, teacher_steps: int = 400, precision: str = "fp32", quick: bool = False
) -> Sweep:
    """A sweep in a folder; trains the teacher if necessary."""
    sizes = replace(TEACHER, steps=teacher_steps)
    if quick:
        sizes = TeacherSizes(vocabulary=600, width=32, layers=1, context=64, batch=4, steps=5)
    work = work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    teacher, unseen = trained_teacher(work, sizes, ENTROPY_NATS, print_progress, quick=quick)
    own = work / f"sweep-of-{teacher.name}"
    (own / "caches").mkdir(parents=True, exist_ok=True)
    texts = Texts(tokens=tokens, validation=1_000 if quick else 12_000, length=sizes.context)
    return of(own, teacher, Caches(own, teacher, unseen, torch.get_num_threads(), print_progress), texts, precision)


def print_progress(text: str) -> None:
    """Print progress."""
    print(text, file=sys.stderr, flush=True)


def options() -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="Folder of teacher, caches and results; resumes there")
    parser.add_argument("--sizes", nargs="+", default=list(SHAPES), choices=SHAPES, help="Student sizes [all]")
    parser.add_argument(
        "--kinds", nargs="+", default=["fresh"], choices=get_args(Kind), help="Kinds of students [fresh]"
    )
    both = get_args(OptimizerKind)
    parser.add_argument("--optimizers", nargs="+", default=list(both), choices=both, help="Optimizers [both]")
    parser.add_argument(
        "--start", nargs=2, type=float, help="Starting learning rates of matrices and tables, powers of ten [by kind]"
    )
    parser.add_argument("--alone", action="store_true", help="Train only the starting cell")
    parser.add_argument("--untied", action="store_true", help="Students whose output head has its own weights")
    parser.add_argument("--confirmed", type=int, default=3, help="Best cells to repeat with more seeds [3]")
    parser.add_argument("--tokens", type=int, default=300_000, help="Tokens per student [300000]")
    parser.add_argument("--teacher-steps", type=int, default=400, help="Training steps of the teacher [400]")
    parser.add_argument(
        "--precision", default="fp32", choices=["fp32", "bf16"], help="Precision of the students [fp32]"
    )
    parser.add_argument("--threads", type=int, default=1, help="Threads per process [1]")
    parser.add_argument("--quick", action="store_true", help="Tiny, for tests only")
    return parser.parse_args()


def main() -> None:
    """Run the sweep and print the results."""
    arguments = options()
    torch.set_num_threads(arguments.threads)
    sweep = open_sweep(
        arguments.work,
        Sweep,
        tokens=arguments.tokens,
        teacher_steps=arguments.teacher_steps,
        precision=arguments.precision,
        quick=arguments.quick,
    )
    confirmed = {}
    for size, kind, optimizer in product(arguments.sizes, arguments.kinds, arguments.optimizers):
        matrices, tables = arguments.start or STARTS[kind, optimizer]
        start = Cell(
            size=size,
            kind=kind,
            optimizer=optimizer,
            matrices=matrices,
            tables=tables,
            tied=not arguments.untied,
            tokens=arguments.tokens,
        )
        sweep.value(start)
        best = [start] if arguments.alone else sweep.search(start)
        confirmed[f"{size} {kind} {optimizer}{' untied' if arguments.untied else ''}"] = sweep.confirmed(
            best, arguments.confirmed
        )
    document = {
        "machine": machine(),
        "torch": torch.__version__,
        "precision": arguments.precision,
        "confirmed": confirmed,
        "cells": list(sweep.results().values()),
    }
    print(json.dumps(rounded(document), indent=1))


if __name__ == "__main__":
    main()
