"""Effect of each loss on hidden states: a small student with and without it, its own value, CE and KL.

In: nothing; a small teacher is trained and cached with states of rows. Out: a table on stderr, one JSON document. A
student without a loss has it at 1e-5 of its weight: Adam is invariant to the scale of the gradient, so the maps are
trained as fast, with almost no effect on the student. `none` has no such loss at all, as a control.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from measure import machine, rounded
from stage_one_inputs import trained_teacher

from kdpipe.pipeline.cache_teacher import cache_teacher
from kdpipe.pipeline.evaluation.stored import load_evaluation
from kdpipe.pipeline.small_teacher import TeacherSizes, write_corpus
from kdpipe.pipeline.train import train
from kdpipe.schemas.capture_settings import CaptureOptions, CaptureSettings
from kdpipe.schemas.progress import SilentProgress
from kdpipe.schemas.train_settings import TrainOptions, TrainSettings

WATCHED: Final = 1e-5
# Multiplied by --scale.
WEIGHTS: Final[Mapping[str, Mapping[str, float]]] = {
    "cosine": {"cosine": 1.0},
    "correlation": {"correlation": 1.0},
    "mse": {"mse": 1.0},
    "position_relations": {"position_relations": 10.0},
    "document_relations": {"document_relations": 10.0},
    "cka": {"cka": 1.0},
    "router": {"cosine": 1.0, "router_balance": 0.1},
}
# Losses without parameters are measured together with one that has maps.
TOGETHER: Final = ("mse", "position_relations", "document_relations", "cka")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Sizes of students and runs."""

    work: Path
    teacher: TeacherSizes
    seeds: int
    steps: int
    scale: float
    quick: bool
    hidden_layers: tuple[str, ...] = ("0.5", "1.0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Validation metrics: raw values of terms, CE, KL to the teacher, agreement."""

    terms: Mapping[str, float]
    numbers: Mapping[str, float]
    router: Mapping[str, float]


def make_cache(plan: Plan) -> Path:
    """The cache of all students, with text unseen by the teacher."""
    plan.work.mkdir(parents=True, exist_ok=True)
    teacher, rows = trained_teacher(plan.work, plan.teacher, None, print_progress, quick=plan.quick)
    corpus, cache = plan.work / "unseen.jsonl", plan.work / f"cache-of-{teacher.name}"
    write_corpus(corpus, iter(rows))
    settings = {
        "data": {"path": str(corpus), "val_fraction": 0.15},
        "teacher": {"name": str(teacher)},
        "sequences": {"length": plan.teacher.context},
        "hidden": {"layers": plan.hidden_layers},
        "machine": {"devices": "cpu", "threads": 1},
        "out": str(cache),
    }
    cache_teacher(CaptureSettings.model_validate(settings), CaptureOptions(), SilentProgress())
    return cache


def measure(plan: Plan, cache: Path, name: str, weights: Mapping[str, float], seed: int) -> Measured:
    """Train a student, or resume its run."""
    out = plan.work / f"{name}-{seed}-{plan.steps}"
    settings: dict[str, Any] = {
        "cache": {"path": str(cache)},
        "student": {"name": "tiny"},
        "losses": {"weights": dict(weights), "hidden": {"router": name.startswith("router")}},
        "optimizer": {"kind": "adamw", "lr": 2e-3, "rates": {"tables": 2e-3, "router": 2e-2}},
        "run": {"max_steps": plan.steps},
        "evaluation": {"every": plan.steps, "limit": None},
        "saving": {"every": plan.steps, "keep": 1},
        "machine": {"device": "cpu", "threads": 1},
        "out": str(out),
        "seed": seed,
    }
    train(TrainSettings.model_validate(settings), TrainOptions(), SilentProgress())
    evaluation = load_evaluation(out)
    assert evaluation is not None, "the cache has a validation split"
    print_progress(
        f"{out.name}: CE {evaluation.cross_entropy:.4f}, KL {evaluation.kl_teacher or math.nan:.4f}, "
        f"{dict(evaluation.terms)}"
    )
    numbers = {
        "cross_entropy": evaluation.cross_entropy,
        "kl_teacher": evaluation.kl_teacher or math.nan,
        "top1_agreement": evaluation.top1_agreement or math.nan,
    }
    return Measured(terms=evaluation.terms, numbers=numbers, router=_mixture(out))


def _mixture(out: Path) -> dict[str, float]:
    """The router's weights at the last step."""
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [json.loads(line).get("logged", {}) for line in lines]
    return next((weights for weights in reversed(logged) if weights), {})


def without(name: str) -> tuple[str, dict[str, float]]:
    """The name of the run that measures a loss at a small weight, and its weights."""
    both = TOGETHER if name in TOGETHER else (name,)
    weights = {term: WATCHED * weight for name in both for term, weight in WEIGHTS[name].items()}
    return f"{'router' if name == 'router' else both[0]}-watched", weights


def compare(plan: Plan, cache: Path, names: list[str]) -> dict[str, Any]:
    """All losses, with and without, over the seeds."""
    seeds = range(plan.seeds)
    plain = [measure(plan, cache, "none", {}, seed) for seed in seeds]
    results: dict[str, Any] = {"none": _spread_of([run.numbers for run in plain])}
    for name in names:
        label, weights = without(name)
        scaled = {term: plan.scale * weight for term, weight in WEIGHTS[name].items()}
        run = name if plan.scale == 1 else f"{name}-x{plan.scale:g}"
        before = [measure(plan, cache, label, weights, seed) for seed in seeds]
        after = [measure(plan, cache, run, scaled, seed) for seed in seeds]
        term = next(iter(WEIGHTS[name]))
        results[name] = {
            "weights": scaled,
            "own_without": _spread([run.terms[term] for run in before]),
            "own_with": _spread([run.terms[term] for run in after]),
            "own_difference": _paired([run.terms[term] for run in before], [run.terms[term] for run in after]),
            "difference": {
                key: _paired([run.numbers[key] for run in before], [run.numbers[key] for run in after])
                for key in before[0].numbers
            },
            "without": _spread_of([run.numbers for run in before]),
            "with": _spread_of([run.numbers for run in after]),
        }
        if after[0].router:
            results[name]["mixture"] = _spread_of([run.router for run in after])
    return results


def _spread_of(runs: list[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    return {name: _spread([run[name] for run in runs]) for name in runs[0]}


def _paired(before: list[float], after: list[float]) -> dict[str, float]:
    """Differences seed by seed: equal seeds have equal initial weights and data."""
    return _spread([late - early for early, late in zip(before, after, strict=True)])


def _spread(values: list[float]) -> dict[str, float]:
    """The mean over seeds, and the standard deviation between them."""
    return {"mean": statistics.mean(values), "spread": statistics.stdev(values) if len(values) > 1 else 0.0}


def table(results: Mapping[str, Any]) -> str:
    """Rows for docs/losses.md."""
    lines = ["| loss | weight | own, without | own, with | CE | KL to the teacher |", "|---|---|---|---|---|---|"]
    for name, result in results.items():
        if name == "none":
            continue
        cells = [mean_and_spread(result["own_without"]), mean_and_spread(result["own_with"])]
        cells += [mean_and_spread(result["difference"][key], sign=True) for key in ("cross_entropy", "kl_teacher")]
        lines.append(f"| {name} | {next(iter(result['weights'].values())):g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def mean_and_spread(statistic: Mapping[str, float], *, sign: bool = False) -> str:
    return f"{statistic['mean']:{'+' if sign else ''}.4f} ± {statistic['spread']:.4f}"


def print_progress(line: str) -> None:
    """Print progress."""
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Train the students and print the results."""
    parser = argparse.ArgumentParser(description="effect of each loss on hidden states")
    parser.add_argument("losses", nargs="*", default=list(WEIGHTS), metavar="LOSS", help=", ".join(WEIGHTS))
    parser.add_argument(
        "--work", type=Path, default=Path("runs/hidden-losses"), help="Folder for results; resumes there"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--scale", type=float, default=1.0, help="Factor for all weights")
    parser.add_argument("--quick", action="store_true", help="Small, for tests only")
    options = parser.parse_args()
    if unknown := [name for name in options.losses if name not in WEIGHTS]:
        parser.error(f"unknown loss {unknown[0]}; available: {', '.join(WEIGHTS)}")
    plan = Plan(
        work=options.work,
        teacher=TeacherSizes(vocabulary=512, width=96, layers=4, batch=8, steps=800),
        seeds=options.seeds,
        steps=options.steps,
        scale=options.scale,
        quick=options.quick,
    )
    if options.quick:
        plan = replace(plan, teacher=TeacherSizes(width=64, steps=2, context=64, batch=4), seeds=1, steps=3)
    torch.set_num_threads(1)
    results = compare(plan, make_cache(plan), options.losses)
    print_progress(table(results))
    print(json.dumps(rounded({"machine": machine(), "steps": plan.steps, "seeds": plan.seeds, "losses": results})))


if __name__ == "__main__":
    main()
