"""Recovered gain from labels alone to dense distillation, by target kind.

In: nothing; text ships with Python, the teacher is trained in a folder (`--teachers`) or given (`--teacher-folder`),
caches and results are stored in another (`--work`): run again to resume. Out: one JSON document, on stderr the same as
a table. Students have the default optimizer and learning rates. `--quick` runs a small version, for tests.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from measure import machine, rounded
from one_student import trained_and_measured
from recovery_inputs import TEACHER, Caches, Texts, bytes_per_position
from recovery_table import recovered, table
from stage_one_inputs import trained_teacher

from kdpipe.cache import open_cache
from kdpipe.pipeline.small_teacher import TeacherSizes
from kdpipe.schemas.train_settings import TrainSettings

LABELS, DENSE = "labels alone", "dense"
BUCKET, RENORMALIZED, ALPHA = "bucket", "renormalized", "alpha"
DEFAULT_KINDS = (LABELS, DENSE, "standard", "fine", "lean", "tau 0.15", "tau 0.2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Sizes of the experiment: `tokens` in total, in one epoch or a third of them in three epochs.

    Without a `folder` the teacher is trained, and its logits are scaled to `entropy_nats` if given.
    """

    teacher: TeacherSizes
    folder: str | None = None
    entropy_nats: float | None = None
    kinds: tuple[str, ...] = DEFAULT_KINDS
    tokens: int = 100_000
    validation: int = 12_000
    width: int = 128
    layers: int = 2
    batch: int = 8
    seeds: int = 5
    passes: tuple[int, ...] = (1, 3)
    threads: int = 1

    def texts(self, passes: int) -> Texts:
        """The texts to cache for so many epochs."""
        length = self.teacher.context
        return Texts(tokens=self.tokens // passes, validation=self.validation, length=length)


FULL = Plan(teacher=TEACHER)
QUICK = Plan(
    teacher=TeacherSizes(vocabulary=600, width=32, layers=1, context=64, batch=4, steps=5),
    tokens=3_000,
    validation=1_000,
    width=32,
    layers=1,
    seeds=2,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Student:
    """One run of the table: cache, losses, epochs and seed."""

    kind: str
    cache: str
    losses: dict[str, Any]
    passes: int
    seed: int

    @property
    def key(self) -> tuple[str, int, int]:
        """The key of the run."""
        return self.kind, self.passes, self.seed


class Recovery:
    """The students; results are appended to a file."""

    def __init__(self, plan: Plan, work: Path, teacher: Path, unseen: list[dict[str, str]]) -> None:
        self._plan, self._work = plan, work
        self.caches = Caches(work, teacher, unseen, plan.threads, print_progress)
        sizes = (plan.tokens, plan.width, plan.layers, plan.batch)
        self._results = work / f"results-{'-'.join(map(str, sizes))}.jsonl"

    def kinds(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """The rows of the table with their caches and losses."""
        return dict(self._kind(name) for name in self._plan.kinds)

    def _kind(self, name: str) -> tuple[str, tuple[str, dict[str, Any]]]:
        top = f"top-{self.caches.top(self._plan.texts(1))}" if name in (BUCKET, RENORMALIZED) else ""
        special: dict[str, tuple[str, tuple[str, dict[str, Any]]]] = {
            LABELS: (LABELS, ("standard", {"mode": "output"})),
            DENSE: (DENSE, ("state", {})),
            BUCKET: (f"{top} and one bin", (top, {"tail_weight": 0.0})),
            RENORMALIZED: (f"{top} renormalized", (top, {"logit": "renormalized"})),
        }
        if name.startswith(ALPHA):
            return name, ("standard", {"alpha": float(name.removeprefix(ALPHA))})
        return special.get(name, (name, (name, {})))

    def students(self) -> Iterator[Student]:
        """Seed by seed, so that a table with fewer seeds is available early."""
        kinds = self.kinds()
        for seed in range(self._plan.seeds):
            for passes in self._plan.passes:
                for kind, (cache, losses) in kinds.items():
                    yield Student(kind=kind, cache=cache, losses=losses, passes=passes, seed=seed)

    def measure(self) -> dict[str, Any]:
        """Train missing students and compare all."""
        results = {(line["kind"], line["passes"], line["seed"]): line for line in self._read()}
        students = list(self.students())
        for number, student in enumerate(students):
            if student.key in results:
                continue
            results[student.key] = line = {**asdict(student), **self._train(student)}
            with self._results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print_progress(
                f"  {number + 1} of {len(students)}: {student.kind}, {student.passes} x, seed {student.seed}: "
                f"CE {line['cross_entropy']:.4f}, KL {line['kl_teacher']:.4f}, {line['seconds']:.0f} s"
            )
        return self._compare([results[student.key] for student in students], students)

    def _read(self) -> list[dict[str, Any]]:
        """Results so far; an incomplete last line is dropped."""
        if not self._results.exists():
            return []
        results = []
        for line in self._results.read_text(encoding="utf-8").splitlines():
            try:
                results.append(json.loads(line))
            except json.JSONDecodeError:
                print_progress("  dropped an incomplete result: its student is trained again")
        whole = "".join(json.dumps(line) + "\n" for line in results)
        self._results.write_text(whole, encoding="utf-8")
        return results

    def _train(self, student: Student) -> dict[str, Any]:
        """Train a student and evaluate it on the validation split of the states."""
        state = open_cache(str(self.caches.of("state", self._plan.texts(student.passes))), "validation")
        with tempfile.TemporaryDirectory(dir=self._work) as place:
            return trained_and_measured(self._settings(student, Path(place)), state)

    def _settings(self, student: Student, place: Path) -> TrainSettings:
        plan, texts = self._plan, self._plan.texts(student.passes)
        config = place / "student.json"
        config.write_text(json.dumps(student_config(plan)), encoding="utf-8")
        never = {"every": 1_000_000}
        return TrainSettings.model_validate(
            {
                "cache": {"path": str(self.caches.of(student.cache, texts))},
                "student": {"name": str(config)},
                "losses": student.losses,
                "run": {"epochs": student.passes, "batch_size": plan.batch},
                # The run's own evaluation is not used here.
                "evaluation": never | {"limit": 1},
                "saving": never,
                "machine": {"device": "cpu", "threads": plan.threads},
                "out": str(place / "run"),
                "seed": student.seed,
            }
        )

    def _compare(self, lines: Sequence[dict[str, Any]], students: Sequence[Student]) -> dict[str, Any]:
        """Bytes, metrics and recovered gain of each kind, by number of epochs."""
        cached = {student.kind: student.cache for student in students}
        results: dict[str, Any] = {}
        for passes in self._plan.passes:
            of_passes = [line for line in lines if line["passes"] == passes]
            rows = recovered(of_passes, LABELS, DENSE)
            for kind, row in rows.items():
                path = self.caches.of(cached[kind], self._plan.texts(passes))
                row["bytes_per_position"] = None if kind == LABELS else bytes_per_position(path)
            results[str(passes)] = {
                "steps": sorted({line["steps"] for line in of_passes}),
                "positions": sorted({line["positions"] for line in of_passes}),
                "optimizer": sorted({line["optimizer_reason"] for line in of_passes}),
                "students": len(of_passes),
                "validated_positions": of_passes[0]["validated_positions"],
                "skipped": sum(line["skipped"] for line in of_passes),
                "cpu_seconds_a_student": statistics.mean(line["cpu_seconds"] for line in of_passes),
                "kinds": rows,
            }
        return results


def student_config(plan: Plan) -> dict[str, Any]:
    """A Llama of about a tenth of its teacher's size."""
    return {
        "model_type": "llama",
        "hidden_size": plan.width,
        "intermediate_size": plan.width * 8 // 3 // 16 * 16,
        "num_hidden_layers": plan.layers,
        "num_attention_heads": plan.width // 32,
        "num_key_value_heads": max(1, plan.width // 64),
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    }


def print_progress(text: str) -> None:
    """Print progress."""
    print(text, file=sys.stderr, flush=True)


def parser_of(description: str) -> argparse.ArgumentParser:
    """Options shared with `epochs.py`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="Tiny, for tests only")
    parser.add_argument("--threads", type=int, default=1, help="Threads [1]")
    parser.add_argument("--work", type=Path, help="Folder for caches and results; resumes there [a temporary one]")
    parser.add_argument("--teachers", type=Path, help="Folder for trained teachers [--work]")
    parser.add_argument("--teacher-folder", help="Teacher [train one]; it reads packages of Python's library")
    return parser


def options() -> argparse.Namespace:
    """Parse the options."""
    parser = parser_of(__doc__.splitlines()[0])
    parser.add_argument("--teacher-steps", type=int, help="Training steps of the teacher [400]")
    parser.add_argument(
        "--entropy-nats", type=float, help="Scale the trained teacher's logits to this entropy [unscaled]"
    )
    kinds = f"labels alone, dense, lean, standard, fine, 50 draws, bucket, renormalized, tau X, alpha X {DEFAULT_KINDS}"
    parser.add_argument("--kinds", nargs="+", help=f"Rows of the table: {kinds}")
    parser.add_argument("--tokens", type=int, help="Tokens per student [100000]")
    parser.add_argument("--batch", type=int, help="Sequences per step [8]")
    parser.add_argument("--validation", type=int, help="Tokens of the validation split [12000]")
    parser.add_argument("--seeds", type=int, help="Seeds per kind [5]")
    parser.add_argument("--passes", type=int, nargs="+", help="Epochs [1 3]")
    return parser.parse_args()


def plan_of(arguments: argparse.Namespace) -> Plan:
    """The sizes given by the options."""
    plan = QUICK if arguments.quick else FULL
    names = ("tokens", "batch", "validation", "seeds", "entropy_nats")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    teacher = replace(plan.teacher, steps=arguments.teacher_steps or plan.teacher.steps)
    # The recovered gain is relative to labels and dense, so both are always included.
    kinds = tuple(dict.fromkeys((LABELS, DENSE, *(arguments.kinds or plan.kinds))))
    passes = tuple(arguments.passes or plan.passes)
    folder = arguments.teacher_folder
    return replace(plan, teacher=teacher, folder=folder, kinds=kinds, threads=arguments.threads, passes=passes, **given)


def main() -> None:
    """Train the students and print the results."""
    arguments = options()
    plan = plan_of(arguments)
    torch.set_num_threads(plan.threads)
    with tempfile.TemporaryDirectory(prefix="kdpipe-bench-") as folder:
        work = (arguments.work or Path(folder)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        teacher, unseen = find_teacher(arguments.teachers or work, plan)
        own = work / f"students-of-{teacher.name}"
        (own / "caches").mkdir(parents=True, exist_ok=True)
        results = Recovery(plan, own, teacher, unseen).measure()
    print_progress(table(results))
    document = {"machine": machine(), "torch": torch.__version__, "plan": asdict(plan), "passes": results}
    print(json.dumps(rounded(document), indent=2))


def find_teacher(work: Path, plan: Plan) -> tuple[Path, list[dict[str, str]]]:
    """The teacher, and additional unseen text, which is unknown for a given teacher."""
    if plan.folder is None:
        return trained_teacher(work, plan.teacher, plan.entropy_nats, print_progress)
    return Path(plan.folder).resolve(), []


if __name__ == "__main__":
    main()
