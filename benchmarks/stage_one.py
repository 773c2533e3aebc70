"""Stage one benchmarks: overhead over a bare forward pass, bytes, gradient angles, scaling with data.

In: nothing; text ships with Python, teachers are made in a folder (`--work` keeps it). Out: one JSON document, and on
stderr the same as tables. `--quick` runs a small version, for tests.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from gradient_angle import compare
from measure import machine, rounded
from stage_one_inputs import RandomSizes, random_teacher, texts, trained_teacher, write_documents
from stage_one_runs import bare, cache, cached_once, in_own_process, opened, profile, settings_for, timed
from stage_one_tables import TABLES

from kdpipe.cache.inspect import inspect_cache
from kdpipe.pipeline.small_teacher import TeacherSizes
from kdpipe.schemas.capture_settings import CaptureSettings

TARGETS = {
    "caching_over_bare": {"cpu": 1.10, "cuda": 1.05},
    "memory_over_bare": 1.25,
    "bytes_per_entry": 1.4,
    "bytes_besides_entries": 14.0,
    "standard_degrees": 2.0,
    "twice_the_data": {"seconds": 2.0, "memory": 1.10},
}
KINDS: dict[str, dict[str, Any]] = {
    "lean": {"profile": "lean"},
    "standard": {},
    "fine": {"profile": "fine"},
    "top-64": {"kind": "topk", "top_k": 64},
    "50 draws": {"kind": "sampled", "draws": 50},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Sizes of the measurements."""

    random: RandomSizes
    trained: TeacherSizes
    tokens: int = 16_384
    part_rows: int | None = None
    rounds: int = 5
    positions: int = 65_536
    entropy_nats: float | None = None
    quick: bool = False


FULL = Scale(
    random=RandomSizes(),
    trained=TeacherSizes(vocabulary=4096, width=256, layers=4, context=256, batch=8, steps=800, rate=3e-3),
)
QUICK = Scale(
    random=RandomSizes(vocabulary=1_000, width=64, layers=2, heads=2),
    trained=TeacherSizes(vocabulary=600, width=32, layers=1, context=64, batch=4, steps=5),
    tokens=2_000,
    part_rows=1_000,
    rounds=1,
    positions=2_000,
    quick=True,
)


class Bench:
    """The inputs, made on first use, and the measurements."""

    def __init__(self, scale: Scale, work: Path, device: str, threads: int | None) -> None:
        self.scale, self.work, self.device, self.threads = scale, work, device, threads
        self._found: dict[str, dict[str, Any]] = {}

    @cached_property
    def large(self) -> CaptureSettings:
        """Settings of the random teacher, whose forward pass dominates the time."""
        teacher = random_teacher(self.work, self.scale.random)
        return self._settings(teacher, texts(), self.scale.tokens, "large")

    @cached_property
    def trained(self) -> tuple[Path, list[dict[str, str]]]:
        """The trained teacher, and unseen text."""
        return trained_teacher(
            self.work, self.scale.trained, self.scale.entropy_nats, print_progress, quick=self.scale.quick
        )

    @cached_property
    def small(self) -> CaptureSettings:
        """Settings of the trained teacher."""
        return self._settings(*self.trained, self.scale.positions, "small")

    def _settings(self, teacher: Path, rows: list[dict[str, str]], n_tokens: int, name: str) -> CaptureSettings:
        corpus = self.work / f"{name}-{n_tokens}.jsonl"
        write_documents(corpus, rows, teacher, n_tokens)
        machine = {"devices": self.device, "threads": self.threads}
        return settings_for(teacher, corpus, machine=machine, sequences={"part_rows": self.scale.part_rows})

    def overhead(self) -> dict[str, Any]:
        """Time of stage one over the bare forward pass, alternating; time by step; peak memory of both."""
        return self._cost() | {"memory": self._memory()}

    def _cost(self) -> dict[str, Any]:
        run = opened(self.large)
        batches = run.batches()
        bare(run, batches[:2])
        cached_once(run)
        rounds = []
        for number in range(self.scale.rounds):
            rounds.append({"bare": timed(lambda: bare(run, batches)), "caching": timed(lambda: cached_once(run))})
            seconds_of_sides = ", ".join(f"{what} {taken['seconds']:.2f} s" for what, taken in rounds[-1].items())
            print_progress(f"  round {number + 1}: {seconds_of_sides}")
        plain, caching = (median_of(rounds, what) for what in ("bare", "caching"))
        ratios = {clock: [row["caching"][clock] / row["bare"][clock] for row in rounds] for clock in plain}
        return {
            "positions": sum(int(piece.loss_mask.sum()) for batch in batches for piece in batch),
            "tokens_padded": sum(len(batch) * max(map(len, batch)) for batch in batches),
            "batches": len(batches),
            "parts": run.n_parts,
            "rounds": rounds,
            "bare": plain,
            "caching": caching,
            # Other load affects two consecutive runs about equally.
            "caching_over_bare": statistics.median(ratios["seconds"]),
            "caching_over_bare_of_cpu": statistics.median(ratios["cpu_seconds"]),
            "ratio_of_each_round": ratios,
            "profile": profile(run),
        }

    def _memory(self) -> dict[str, Any]:
        memory = {what: in_own_process(self.large, what) for what in ("bare", "cache")}
        return {
            **memory,
            "added_over_bare": memory["cache"]["added_bytes"] / memory["bare"]["added_bytes"],
            "peak_over_bare": memory["cache"]["peak_bytes"] / memory["bare"]["peak_bytes"],
        }

    def bytes(self) -> dict[str, Any]:
        """Bytes per position by target kind, and the limits for entries and the rest."""
        return {name: self.cached(name, settings)[1] for name, settings in KINDS.items()}

    def cached(self, name: str, targets: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
        """Make a cache of the small teacher once, and describe it."""
        path = self.work / "caches" / name.replace(" ", "-")
        if name not in self._found:
            path.parent.mkdir(exist_ok=True)
            run = opened(self.small.model_copy(update={"targets": type(self.small.targets)(**targets)}))
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                cache(run, Path(folder) / "cache")
                replaced(Path(folder) / "cache", path)
            self._found[name] = described(path)
            print_progress(f"  {name}: {self._found[name]['bytes_per_position']['total']:.2f} bytes per position")
        return path, self._found[name]

    def angle(self) -> dict[str, Any]:
        """Gradient angles of each profile, and of other kinds at the bytes of `standard`."""
        paths = {name: self.cached(name, KINDS[name])[0] for name in ("lean", "standard", "fine")}
        most = self._found["standard"]["bytes_per_position"]["total"]
        kinds: dict[str, Callable[[int], dict[str, Any]]] = {
            "top-{} and one bin": lambda k: {"kind": "topk", "top_k": k},
            "{} draws": lambda n: {"kind": "sampled", "draws": n},
        }
        for template, make in kinds.items():
            number = smallest(lambda n: self._total(template.format(n), make(n)) >= most, 1, 128)  # noqa: B023  # called here
            name = template.format(number)
            paths[name] = self.cached(name, make(number))[0]
        angles = compare(paths, Path(str(self.small.teacher.name)), self.scale.positions, self.device)
        return angles | {"caches": {name: self._found[name] for name in paths}}

    def _total(self, name: str, targets: dict[str, Any]) -> float:
        total: float = self.cached(name, targets)[1]["bytes_per_position"]["total"]
        return total

    def scaling(self) -> dict[str, Any]:
        """Once and twice the data, each in its own process, alternating."""
        once = self.small
        n = 2 * self.scale.positions
        twice = self._settings(*self.trained, n, "small")
        rounds = [[in_own_process(row, "cache") for row in (once, twice)] for _ in range(self.scale.rounds)]
        names = ("seconds", "cpu_seconds", "peak_bytes", "added_bytes")
        medians = [{name: statistics.median(row[i][name] for row in rounds) for name in names} for i in range(2)]
        return {
            "once": medians[0],
            "twice": medians[1],
            "ratio": {name: medians[1][name] / medians[0][name] for name in names},
            "ratio_of_each_round": {name: [two[name] / one[name] for one, two in rounds] for name in names},
        }


def median_of(rounds: list[dict[str, dict[str, float]]], what: str) -> dict[str, float]:
    """The median of each timer."""
    return {clock: statistics.median(row[what][clock] for row in rounds) for clock in rounds[0][what]}


def smallest(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The smallest number for which a monotonic condition holds."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def replaced(made: Path, path: Path) -> None:
    """Move a folder, replacing an older one."""
    if path.exists():
        path.rename(made.parent / "old")
    made.rename(path)


def described(path: Path) -> dict[str, Any]:
    """Size and fidelity of a cache."""
    summary = inspect_cache(path)
    entries = summary.entries_per_position
    assert entries is not None and summary.fidelity is not None
    budget = TARGETS["bytes_per_entry"] * entries.mean + TARGETS["bytes_besides_entries"]
    return {
        "positions": summary.positions,
        "parts": summary.parts.present,
        "entries_per_position": entries.model_dump(),
        "bytes_per_position": dict(summary.bytes_per_position),
        "budget": budget,
        "entropy_nats": summary.entropy_nats,
        "label_nats": summary.label_nats,
        "tail_mass": summary.tail_mass,
        "fidelity": summary.fidelity.model_dump(),
    }


def print_progress(text: str) -> None:
    """Print progress."""
    print(text, file=sys.stderr, flush=True)


def parse_options() -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", help=f"Measurements: {', '.join(TABLES)} [all]")
    parser.add_argument("--quick", action="store_true", help="Small, for tests only")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:0 [cpu]")
    parser.add_argument("--threads", type=int, help="Threads of torch [one per core]")
    parser.add_argument("--work", type=Path, help="Folder for teachers and caches; reused there")
    parser.add_argument("--steps", type=int, help="Training steps of the small teacher")
    parser.add_argument("--entropy-nats", type=float, help="Scale its logits to this entropy")
    parser.add_argument("--tokens", type=int, help="Tokens of the large teacher per round")
    parser.add_argument("--positions", type=int, help="Tokens to cache for bytes and angles")
    parser.add_argument("--rounds", type=int, help="Repetitions of timed runs")
    arguments = parser.parse_args()
    if odd := set(arguments.what) - set(TABLES):
        parser.error(f"unknown measurement {', '.join(sorted(odd))}; available: {', '.join(TABLES)}")
    return arguments


def scale_of(arguments: argparse.Namespace) -> Scale:
    """The sizes given by the options."""
    scale = QUICK if arguments.quick else FULL
    names = ("tokens", "positions", "rounds", "entropy_nats")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name)}
    trained = replace(scale.trained, steps=arguments.steps) if arguments.steps else scale.trained
    return replace(scale, trained=trained, **given)


def main() -> None:
    """Run the measurements and print the results."""
    arguments = parse_options()
    with tempfile.TemporaryDirectory(prefix="kdpipe-bench-") as folder:
        work = arguments.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        bench = Bench(scale_of(arguments), work, arguments.device, arguments.threads)
        result: dict[str, Any] = {"machine": machine(), "torch": torch.__version__, "device": arguments.device}
        if arguments.device != "cpu":
            result["gpu"] = torch.cuda.get_device_name(arguments.device)
        result["target"] = TARGETS
        for name, table in TABLES.items():
            if arguments.what and name not in arguments.what:
                continue
            print_progress(f"{name}:")
            result[name] = getattr(bench, name)()
            print_progress(table(result[name]))
    result["threads"] = torch.get_num_threads()
    print(json.dumps(rounded(result), indent=2))


if __name__ == "__main__":
    main()
