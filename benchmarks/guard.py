"""False alarms of the guard: healthy runs of tiny students, and the ratio of their gradient norms to the limits.

In: a cache with `--hidden-layers`. Out: one line per run on stderr, one JSON document on stdout.
A false alarm is any skipped step; `ratio` is the largest norm over the median that it is compared with, `bare` the same
right after a phase begins, where ten times as much is allowed.
"""

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from measure import machine, rounded

from kdpipe.pipeline.training import run_folder
from kdpipe.pipeline.training.guard import LEAST_NORMS, PRESETS
from kdpipe.pipeline.training.interruptions import StopRequest
from kdpipe.pipeline.training.loop import Loop
from kdpipe.pipeline.training.metrics import read_metrics
from kdpipe.pipeline.training.run import plan_run
from kdpipe.pipeline.training.session import open_session
from kdpipe.pipeline.training.train_state import build_train_state
from kdpipe.schemas.checkpoint import LoopState
from kdpipe.schemas.progress import SilentProgress
from kdpipe.schemas.train_settings import TrainSettings

PHASES: Final = [
    {"until": 0.25, "alpha": 0.5, "order": "length"},
    {"until": 0.5, "temperature": 4.0},
    {"until": 0.75, "weights": {"document_relations": 10.0}},
    {"until": 1, "alpha": 1.0, "order": "entropy"},
]
RECIPES: Final[Mapping[str, dict[str, Any]]] = {
    "hybrid": {},
    "no warm-up": {"schedule": {"warmup": 0.0}},
    "default rates": {"optimizer": {"lr": None, "rates": {}}},
    "default rates, no warm-up": {"optimizer": {"lr": None, "rates": {}}, "schedule": {"warmup": 0.0}},
    "high rate": {"optimizer": {"lr": 1e-2, "rates": {"tables": 1e-2}}},
    "labels, batch 1": {"losses": {"mode": "output"}, "run": {"batch_size": 1}},
    "reverse KL": {"losses": {"mode": "logit", "logit": "reverse_kl"}},
    "phases": {"run": {"phases": PHASES}},
    "states alone": {"losses": {"mode": "output", "weights": {"ce": 0.0, "cosine": 1.0}, "hidden": {"router": True}}},
    "by length": {"run": {"order": "length", "batch_size": 2}},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Settings common to all runs."""

    cache: Path
    work: Path
    steps: int
    factor: float


def settings_for(plan: Plan, optimizer: str, seed: int, recipe: Mapping[str, Any]) -> TrainSettings:
    """The settings of one run."""
    sections: dict[str, Any] = {
        "cache": {"path": str(plan.cache)},
        "student": {"name": "tiny"},
        "optimizer": {"kind": optimizer, "lr": 3e-3, "rates": {"tables": 3e-3}},
        "run": {"max_steps": plan.steps, "batch_size": 4},
        "evaluation": {"every": plan.steps, "limit": 1},
        "saving": {"every": plan.steps},
        "losses": {"allow_coarse": True},
        "guard": {"median_factor": plan.factor},
        "machine": {"device": "cpu", "threads": 1, "precision": "fp32"},
        "out": str(plan.work / "run"),
        "seed": seed,
    }
    for name, values in recipe.items():
        sections[name] = sections.get(name, {}) | values
    return TrainSettings.model_validate_json(json.dumps(sections))


def ratios(norms: list[float], begins: list[int]) -> tuple[float, float]:
    """The largest norm over its median, in general and right after a phase begins, by the guard's rule."""
    window = PRESETS["standard"].window
    settled, bare = 0.0, 0.0
    for n in range(LEAST_NORMS, len(norms)):
        began = max(begin for begin in begins if begin <= n)
        last = norms[max(0, n - window) : n]
        own = norms[max(began, n - window) : n]
        if len(own) >= LEAST_NORMS:
            usual = max(statistics.median(own), statistics.median(own[-LEAST_NORMS:]))
            settled = max(settled, norms[n] / usual)
        else:
            bare = max(bare, norms[n] / statistics.median(last))
    return settled, bare


def train(settings: TrainSettings) -> Path:
    """Run all steps; the student is discarded."""
    out, progress = Path(settings.out or ""), SilentProgress()
    shutil.rmtree(out, ignore_errors=True)
    run = plan_run(settings, progress)
    train_state = build_train_state(run, progress)
    run_folder.claim(out, run.record)
    with open_session(run, train_state, out, None, progress, StopRequest(progress.message, {})) as session:
        state = LoopState(step=0, place=0)
        session.checkpoints.save(state)
        Loop(session, state).train_until(run.plan.n_steps)
    return out


def measure(plan: Plan, optimizer: str, seed: int, name: str) -> dict[str, Any]:
    """Train one student and record its gradient norms."""
    recipe = RECIPES[name]
    out = train(settings_for(plan, optimizer, seed, recipe))
    lines = [line for line in read_metrics(out) if "verdict" in line]
    norms = [line["gradient_norm"] for line in lines if line["verdict"] == "accept"]
    ends = [round(phase["until"] * plan.steps) for phase in recipe.get("run", {}).get("phases", [])]
    settled, bare = ratios(norms, [0, *ends[:-1]])
    return {
        "recipe": name,
        "optimizer": optimizer,
        "seed": seed,
        "skipped": sum(line["verdict"] != "accept" for line in lines),
        "first": norms[0],
        "median": statistics.median(norms),
        "largest": max(norms),
        "ratio": settled,
        "bare": bare,
    }


def main() -> None:
    """Run the recipes and print the results."""
    parser = argparse.ArgumentParser(description="false alarms of the guard on healthy runs")
    parser.add_argument("recipes", nargs="*", default=list(RECIPES), metavar="RECIPE", help=", ".join(RECIPES))
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/guard"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    factor = PRESETS["standard"].median_factor
    parser.add_argument("--factor", type=float, default=factor, help=f"guard.median_factor [{factor:g}]")
    options = parser.parse_args()
    if unknown := [name for name in options.recipes if name not in RECIPES]:
        parser.error(f"unknown recipe {unknown[0]}; available: {', '.join(RECIPES)}")
    options.work.mkdir(parents=True, exist_ok=True)
    plan = Plan(cache=options.cache, work=options.work, steps=options.steps, factor=options.factor)
    runs = []
    for name in options.recipes:
        for optimizer in ("adamw", "muon"):
            for seed in range(options.seeds):
                result = measure(plan, optimizer, seed, name)
                print(json.dumps(rounded(result)), file=sys.stderr, flush=True)
                runs.append(result)
    print(json.dumps(rounded({"machine": machine(), "steps": plan.steps, "factor": plan.factor, "runs": runs})))


if __name__ == "__main__":
    main()
