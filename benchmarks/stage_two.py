"""Stage two benchmarks: step time and memory against Trainer and GKDTrainer, scaling with steps, waiting time.

In: nothing; caches, students and teachers are made in a folder (`--work` keeps it, and the timed pairs: run again to
resume), peers in a separate environment (`peers.txt`). Out: one JSON document, and on stderr the same as tables.
`--quick` runs a small version, for tests.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from measure import machine, rounded
from stage_one_inputs import RandomSizes, random_teacher, texts, write_documents
from stage_two_environment import python_with_peers
from stage_two_inputs import Case, make_cache, settings_for
from stage_two_pairs import Pairs
from stage_two_tables import TABLES, interval

CHILD = Path(__file__).with_name("stage_two_child.py")
TARGETS = {
    "step": {"seconds": {"32000": 1.0, "152000": 0.95}, "memory": 0.6},
    "gkd": {"seconds": 0.5},
    "scaling": {"seconds": 10.0, "memory": 1.10},
    "waiting": 0.01,
    "stages": "student below the teacher's weights",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Sizes of the measurements."""

    case: Case
    small: Case
    teacher: RandomSizes
    vocabularies: tuple[int, ...] = (32_000, 152_000)
    rounds: int = 30
    profile: bool = False
    steps: int = 300
    waiting_steps: int = 10
    taught_tokens: int = 16_384


FULL = Scale(
    case=Case(),
    small=Case(vocabulary=4_096, preset="tiny", batch=4, length=128),
    teacher=RandomSizes(width=1024, layers=24, heads=16),
)
QUICK = Scale(
    case=Case(vocabulary=1_000, preset="tiny", batch=2, length=64, sequences=32),
    vocabularies=(1_000,),
    rounds=2,
    steps=4,
    waiting_steps=3,
    small=Case(vocabulary=1_000, preset="tiny", batch=2, length=64, sequences=32),
    teacher=RandomSizes(vocabulary=1_000, width=128, layers=2, heads=4),
    taught_tokens=2_000,
)


class Bench:
    """The measurements."""

    def __init__(self, scale: Scale, work: Path, peers: Path) -> None:
        self.scale, self.work, self.peers = scale, work, peers

    def step(self) -> dict[str, Any]:
        """Time and memory of a hybrid step and of the Trainer's cross-entropy step, at each vocabulary."""
        results = {}
        for vocabulary in self.scale.vocabularies:
            case = replace(self.scale.case, vocabulary=vocabulary)
            results[str(vocabulary)] = self._timed("trainer", case) | self._inside("trainer", case)
        return results

    def gkd(self) -> dict[str, Any]:
        """The same step and one of GKDTrainer, with a teacher in the process, at the first vocabulary."""
        case = replace(self.scale.case, vocabulary=self.scale.vocabularies[0])
        return self._timed("gkd", case) | self._inside("gkd", case)

    def _timed(self, peer: str, case: Case) -> dict[str, Any]:
        """Timed pairs of steps, and the medians of their ratios."""
        how = f"{case.batch} x {case.length}, {case.vocabulary:,} ids, micro-batch {case.portion or 'default'}"
        print_progress(f"  {case.preset}, {how}, against {peer}")
        results = self._pairs(peer, case)
        seconds, cpu = (
            interval([pair["ours"][clock] / pair["theirs"][clock] for pair in results["rounds"]])
            for clock in ("seconds", "cpu_seconds")
        )
        medians = {
            side: statistics.median(pair[side]["seconds"] for pair in results["rounds"]) for side in ("ours", "theirs")
        }
        return {**results, "peer": peer, "medians": medians, "ratio": seconds, "ratio_of_cpu": cpu}

    def _inside(self, peer: str, case: Case) -> dict[str, Any]:
        """Memory added by the steps of each side, and with `--profile` the time of their parts."""
        print_progress("  memory of each side")
        memory = {side: self._child("memory", side, case, 1) for side in ("ours", peer)}
        return {
            "memory": memory,
            "memory_ratio": memory["ours"]["added_bytes"] / memory[peer]["added_bytes"],
            "profile": {side: self._child("profile", side, case, 1) for side in memory} if self.scale.profile else {},
        }

    def _pairs(self, peer: str, case: Case) -> dict[str, Any]:
        """Time the pairs that are missing in the folder."""
        sizes = (case.preset, case.batch, case.length, case.vocabulary, case.documents, case.portion, case.threads)
        kept = Pairs(self.work / f"pairs-{peer}-{'-'.join(map(str, sizes))}.jsonl")
        missing = self.scale.rounds - len(kept.read()["rounds"])
        if missing > 0:
            self._child("pairs", peer, case, missing, kept=str(kept.path))
        return kept.read()

    def scaling(self) -> dict[str, Any]:
        """So many steps of a tiny student, and ten times as many, each in its own process."""
        n = self.scale.steps
        results = {str(steps): self._run(self.scale.small, steps, n, "scaling") for steps in (n, 10 * n)}
        once, ten = (self._seconds_and_peak(run) for run in results.values())
        return {
            "steps": list(results),
            "once": once,
            "ten_times": ten,
            "ratio": {name: ten[name] / once[name] for name in once},
        }

    @staticmethod
    def _seconds_and_peak(report: dict[str, Any]) -> dict[str, float]:
        return {
            "seconds_of_steps": report["positions"] / report["positions_per_second"],
            "seconds_in_all": report["seconds"],
            "peak_bytes": report["memory"]["peak_process"],
        }

    def waiting(self) -> dict[str, Any]:
        """The share of a run's time spent waiting for the cache."""
        report = self._run(self.scale.case, self.scale.waiting_steps, self.scale.waiting_steps, "waiting")
        lines = (Path(report["run"]) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        steps = [line["waiting_share"] for line in map(json.loads, lines) if line.get("verdict") == "accept"]
        return {
            "share": report["waiting_share"],
            "share_of_first_step": steps[0],
            "median_share_of_later_steps": statistics.median(steps[1:]),
            "positions_per_second": report["positions_per_second"],
        }

    def _run(self, case: Case, steps: int, often: int, name: str) -> dict[str, Any]:
        every = {"every": often}
        cache, out = make_cache(self.work, case), self.work / f"{name}-{steps}"
        settings = settings_for(case, cache, out, run={"max_steps": steps}, evaluation=every, saving=every)
        return self._in_child(sys.executable, "train", {"settings": settings.model_dump(mode="json")})

    def stages(self) -> dict[str, Any]:
        """Peak memory of `cache-teacher` with a large teacher, and of `train` from its cache."""
        folder = random_teacher(self.work, self.scale.teacher)
        corpus, cache = self.work / "taught.jsonl", self.work / "taught"
        write_documents(corpus, texts(), folder, self.scale.taught_tokens)
        threads = self.scale.case.threads
        capture = {
            "teacher": {"name": str(folder)},
            "data": {"path": str(corpus), "val_fraction": 0.0},
            "sequences": {"length": self.scale.small.length},
            "machine": {"devices": "cpu", "threads": threads},
            "out": str(cache),
        }
        teaching = self._in_child(sys.executable, "cache-teacher", {"settings": capture})
        two = settings_for(
            self.scale.small, cache, self.work / "taught-student", run={"max_steps": self.scale.waiting_steps}
        )
        learning = self._in_child(sys.executable, "train", {"settings": two.model_dump(mode="json")})
        weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        return {
            "teacher_weights": weights,
            "student_weights": learning["memory"]["weights"],
            "cache_teacher_peak": teaching["peak_bytes"],
            "train_peak": learning["memory"]["peak_process"],
            "train_peak_over_teacher_weights": learning["memory"]["peak_process"] / weights,
        }

    def _child(self, what: str, peer: str, case: Case, rounds: int, **more: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=self.work) as place:
            task = {
                "case": asdict(case),
                "cache": str(make_cache(self.work, case)),
                "work": place,
                "peer": peer,
                "rounds": rounds,
                **more,
            }
            return self._in_child(str(python_with_peers(self.peers)), what, task)

    @staticmethod
    def _in_child(python: str, what: str, task: dict[str, Any]) -> dict[str, Any]:
        """The JSON result of a child process; its progress goes to stderr."""
        offline = os.environ | {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
        arguments = [python, str(CHILD), what, json.dumps(task)]
        done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, env=offline)
        if done.returncode:
            raise SystemExit(f"{what} failed in its child process, see above")
        results: dict[str, Any] = json.loads(done.stdout)
        return results


def print_progress(text: str) -> None:
    """Print progress."""
    print(text, file=sys.stderr, flush=True)


def parse_options() -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", help=f"Measurements: {', '.join(TABLES)} [all]")
    parser.add_argument("--quick", action="store_true", help="Small, for tests only")
    parser.add_argument("--threads", type=int, help="Threads of torch [one per core]")
    parser.add_argument("--rounds", type=int, help="Pairs of steps to time")
    parser.add_argument("--profile", action="store_true", help="Also measure the parts of a step on each side")
    parser.add_argument("--vocabulary", type=int, nargs="*", help="Vocabulary of the student [32000 and 152000]")
    parser.add_argument("--documents", type=int, help="Documents per sequence [2]")
    parser.add_argument("--portion", type=int, help="Sequences per micro-batch of kdpipe [automatic]")
    parser.add_argument("--work", type=Path, help="Folder for caches and pairs; resumes there")
    parser.add_argument("--peers", type=Path, help="Folder for the environment of the peers [.venv/peers]")
    arguments = parser.parse_args()
    if arguments.portion is not None and arguments.portion < 1:
        parser.error(f"a micro-batch of {arguments.portion} sequences is not possible")
    if odd := set(arguments.what) - set(TABLES):
        parser.error(f"unknown measurement {', '.join(sorted(odd))}; available: {', '.join(TABLES)}")
    return arguments


def scale_of(arguments: argparse.Namespace) -> Scale:
    """The sizes given by the options."""
    scale = QUICK if arguments.quick else FULL
    given: dict[str, Any] = {"threads": arguments.threads}
    if arguments.documents:
        given["documents"] = arguments.documents
    return replace(
        scale,
        case=replace(scale.case, **given, portion=arguments.portion),
        small=replace(scale.small, **given),
        rounds=arguments.rounds or scale.rounds,
        profile=arguments.profile,
        vocabularies=tuple(arguments.vocabulary or scale.vocabularies),
    )


def main() -> None:
    """Run the measurements and print the results."""
    arguments = parse_options()
    with tempfile.TemporaryDirectory(prefix="kdpipe-bench-") as folder:
        work = (arguments.work or Path(folder)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        bench = Bench(scale_of(arguments), work, arguments.peers or Path(sys.prefix) / "peers")
        result: dict[str, Any] = {
            "machine": machine(),
            "threads": arguments.threads,
            "portion": arguments.portion,
            "target": TARGETS,
        }
        for name, table in TABLES.items():
            if arguments.what and name not in arguments.what:
                continue
            print_progress(f"{name}:")
            result[name] = getattr(bench, name)()
            print_progress(table(result[name]))
    print(json.dumps(rounded(result), indent=2))


if __name__ == "__main__":
    main()
