"""How much students memorize stored draws, by cache size and epochs, and two countermeasures.

In: nothing; the teacher is that of `recovery.py`. Out: one JSON document, on stderr a Markdown table: exact KL to the
teacher on training and validation positions, and its estimate from the stored draws on training positions. Results are
appended to a file in `--work`: run again to resume. `--quick` runs a small version, for tests.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from epoch_cures import PriorMixed, SetsInTurn, unigram
from measure import machine, rounded
from one_student import trained
from recovery import QUICK as QUICK_RECOVERY
from recovery import Plan, find_teacher, parser_of, print_progress, student_config
from recovery_inputs import TEACHER, Caches, Texts, bytes_by_array
from recovery_table import markdown

from kdpipe.cache import open_cache
from kdpipe.pipeline.training.session import Session
from kdpipe.schemas.train_settings import TrainSettings

EPOCHS = {15_000: (2, 4, 8, 16), 150_000: (2, 4, 8), 1_500_000: (1, 2)}
# Positions for evaluation, per split.
MEASURED = 12_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """A target kind with a number of independent sets of draws (one per epoch) and the share of the prior."""

    kind: str
    sets: int = 1
    prior: float = 0.0

    @property
    def name(self) -> str:
        """The row label of the table."""
        sets = f", {self.sets} sets" if self.sets > 1 else ""
        return f"{self.kind}{sets}" + (f", {self.prior:g} of the tail prior" if self.prior else "")


DENSE = Targets(kind="state")
# Two sets of `lean` and three at 0.2 take about the bytes of one `standard`.
KINDS = (
    DENSE,
    Targets(kind="standard"),
    Targets(kind="lean", sets=2),
    Targets(kind="tau 0.2", sets=3),
    Targets(kind="standard", prior=0.3),
    Targets(kind="fine"),
    Targets(kind="lean"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Student:
    """One run: cache size, epochs and targets."""

    targets: str
    positions: int
    epochs: int
    seed: int


class Epochs:
    """Students by cache size, epochs and targets; results are appended to a file."""

    def __init__(self, plan: Plan, work: Path, caches: Caches, epochs: dict[int, tuple[int, ...]]) -> None:
        self._plan, self._work, self._caches, self._epochs = plan, work, caches, epochs
        self._file = work / f"epochs-{plan.width}-{plan.layers}-{plan.batch}.jsonl"

    def students(self, kinds: tuple[Targets, ...]) -> Iterator[tuple[Targets, Student]]:
        """All students, smallest caches first."""
        for seed in range(self._plan.seeds):
            for positions, epochs in self._epochs.items():
                for often in epochs:
                    for kind in kinds:
                        yield kind, Student(targets=kind.name, positions=positions, epochs=often, seed=seed)

    def measure(self, kinds: tuple[Targets, ...]) -> list[dict[str, Any]]:
        """All results; missing students are trained."""
        known, rows = self.results(), []
        for kind, student in self.students(kinds):
            if student not in known:
                known[student] = {**asdict(student), **self.train(kind, student)}
                with self._file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(known[student]) + "\n")
                line = known[student]
                print_progress(
                    f"  {student}: KL {line['train_kl']:.4f} in training (by draws {line['train_kl_by_draws']:.4f}), "
                    f"{line['validation_kl']:.4f} in validation, {line['seconds']:.0f} s"
                )
            rows.append({**known[student], "bytes_per_position": self.bytes_per_position(kind, student.positions)})
        return rows

    def results(self) -> dict[Student, dict[str, Any]]:
        """All finished results."""
        if not self._file.exists():
            return {}
        lines = [json.loads(line) for line in self._file.read_text(encoding="utf-8").splitlines()]
        names = Student.__dataclass_fields__
        return {Student(**{name: line[name] for name in names}): line for line in lines}

    def train(self, kind: Targets, student: Student) -> dict[str, Any]:
        """Train one student and evaluate it on training and validation positions."""
        texts = self._texts(student.positions)
        state = str(self._caches.of("state", texts))
        paths = [str(self._caches.of(kind.kind, texts, seed)) for seed in range(kind.sets)]
        limit = -(-MEASURED // texts.length)
        with tempfile.TemporaryDirectory(dir=self._work) as place, ExitStack() as stack:
            settings = self._settings(student, paths[0], Path(place))
            run = trained(settings, self._changed(kind, paths, student.seed, stack))
        exact, validation = (
            run.measured(open_cache(state, "train"), limit),
            run.measured(open_cache(state, "validation")),
        )
        drawn = run.measured(open_cache(paths[0], "train"), limit)
        assert exact.kl_teacher_estimate == validation.kl_teacher_estimate == "exact"
        return {
            "optimizer": run.run.optimizer_reason,
            "steps": run.state.step,
            "read_positions": run.state.positions,
            "train_kl": exact.kl_teacher,
            "train_kl_by_draws": drawn.kl_teacher,
            "validation_kl": validation.kl_teacher,
            "validation_ce": validation.cross_entropy,
            "seconds": run.state.seconds,
        }

    def bytes_per_position(self, kind: Targets, positions: int) -> float:
        """Bytes of all sets; columns that do not depend on draws are counted once."""
        sizes = bytes_by_array(self._caches.of(kind.kind, self._texts(positions)))
        return float(sizes["total"] + (kind.sets - 1) * (sizes.get("id", 0.0) + sizes.get("logprob", 0.0)))

    def _changed(self, kind: Targets, paths: list[str], seed: int, stack: ExitStack) -> Callable[[Session], Session]:
        def changed(session: Session) -> Session:
            loader: Any = session.loader
            if kind.sets > 1:
                loader = SetsInTurn([open_cache(path, "train") for path in paths], self._plan.batch)
                stack.callback(loader.close)
            if kind.prior:
                loader = PriorMixed(loader, kind.prior, unigram(open_cache(paths[0], "train")), seed)
            return replace(session, loader=loader)

        return changed

    def _texts(self, positions: int) -> Texts:
        return Texts(tokens=positions, validation=self._plan.validation, length=self._plan.teacher.context)

    def _settings(self, student: Student, cache: str, place: Path) -> TrainSettings:
        config = place / "student.json"
        config.write_text(json.dumps(student_config(self._plan)), encoding="utf-8")
        never = {"every": 1_000_000}
        return TrainSettings.model_validate(
            {
                "cache": {"path": cache},
                "student": {"name": str(config)},
                "run": {"epochs": student.epochs, "batch_size": self._plan.batch},
                "evaluation": never | {"limit": 1},
                "saving": never,
                "machine": {"device": "cpu", "threads": self._plan.threads},
                "out": str(place / "run"),
                "seed": student.seed,
            }
        )


def table(rows: list[dict[str, Any]]) -> str:
    """One row per cache size, number of epochs and targets."""
    titles = ("positions", "epochs", "targets", "bytes", "KL, training", "by its draws", "KL, validation", "seed")
    cells = [
        (
            f"{row['positions']:,}",
            str(row["epochs"]),
            "dense" if row["targets"] == DENSE.name else row["targets"],
            f"{row['bytes_per_position']:.1f}",
            *(f"{row[name]:.3f}" for name in ("train_kl", "train_kl_by_draws", "validation_kl")),
            str(row["seed"]),
        )
        for row in rows
    ]
    return "\n".join(markdown(titles, cells))


def options() -> argparse.Namespace:
    """Parse the options."""
    parser = parser_of(__doc__.splitlines()[0])
    parser.add_argument("--positions", type=int, nargs="+", help=f"Cache sizes {tuple(EPOCHS)}")
    parser.add_argument("--epochs", type=int, nargs="+", help="Epochs [by size: 2 4 8 16; 2 4 8; 1 2]")
    names = [kind.name for kind in KINDS]
    parser.add_argument("--targets", nargs="+", choices=names, default=names[:5], help="Targets [first five]")
    parser.add_argument("--seeds", type=int, default=1, help="Seeds per kind [1]")
    return parser.parse_args()


def main() -> None:
    """Train the students and print the results."""
    arguments = options()
    torch.set_num_threads(arguments.threads)
    plan = QUICK_RECOVERY if arguments.quick else Plan(teacher=TEACHER, batch=4)
    plan = replace(plan, folder=arguments.teacher_folder, seeds=arguments.seeds, threads=arguments.threads)
    epochs = {3_000: (1, 2)} if arguments.quick else EPOCHS
    if arguments.positions:
        epochs = {positions: epochs.get(positions, (1, 2)) for positions in arguments.positions}
    if arguments.epochs:
        epochs = dict.fromkeys(epochs, tuple(arguments.epochs))
    kinds = tuple(kind for kind in KINDS if kind.name in arguments.targets)
    with tempfile.TemporaryDirectory(prefix="kdpipe-bench-") as folder:
        work = (arguments.work or Path(folder)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        teacher, unseen = find_teacher(arguments.teachers or work, plan)
        own = work / f"students-of-{teacher.name}"
        (own / "caches").mkdir(parents=True, exist_ok=True)
        measured = Epochs(plan, own, Caches(own, teacher, unseen, plan.threads, print_progress), epochs)
        rows = measured.measure(kinds)
    print_progress(table(rows))
    document = {"machine": machine(), "torch": torch.__version__, "plan": asdict(plan), "rows": rows}
    print(json.dumps(rounded(document), indent=1))


if __name__ == "__main__":
    main()
