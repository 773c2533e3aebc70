"""The numbers by which `kdpipe doctor RUN` judges a run, for healthy runs of tiny students.

In: a cache with `--hidden-layers` and a temperature. Out: a Markdown table, one line per run, and the levels of all
checks but ok.
"""

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from kdpipe.pipeline.diagnosis.run_checks import check_run
from kdpipe.pipeline.diagnosis.run_metrics import RunMetrics
from kdpipe.pipeline.train import train
from kdpipe.schemas.progress import SilentProgress
from kdpipe.schemas.train_settings import TrainOptions, TrainSettings

PHASES: Final = [{"until": 0.4, "alpha": 0.5}, {"until": 1, "alpha": 0.1, "weights": {"cosine": 0.5}}]
RECIPES: Final[Mapping[str, dict[str, Any]]] = {
    "hybrid": {},
    "labels": {"losses": {"mode": "output"}},
    "skew KL alone": {"losses": {"mode": "logit", "logit": "skew_kl"}},
    "temperature 2": {"losses": {"temperature": 2.0, "allow_coarse": True}},
    "hidden states": {"losses": {"weights": {"cosine": 0.5, "position_relations": 0.5}}},
    "alpha by wsd": {"losses": {"alpha_schedule": "wsd"}, "schedule": {"kind": "wsd"}},
    "two phases": {"run": {"phases": PHASES}},
    "AdamW, linear": {"optimizer": {"kind": "adamw"}, "schedule": {"kind": "linear", "floor": 0.1}},
    "batch 1": {"run": {"batch_size": 1}},
    "four epochs": {"run": {"epochs": 4.0, "max_steps": None}},
}
COLUMNS: Final = (
    "recipe", "steps", "fall / noise", "above the best", "least share", "gap", "skips", "memory", "waiting", "findings",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("healthy-runs"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for name, recipe in RECIPES.items():
        for seed in range(arguments.seeds):
            out = arguments.work / f"{name.replace(' ', '-')}-{seed}"
            shutil.rmtree(out, ignore_errors=True)
            train(settings_for(arguments, recipe, seed, out), TrainOptions(), SilentProgress())
            print(f"| {name} | {' | '.join(numbers_of(out))} |", flush=True)


def settings_for(arguments: argparse.Namespace, recipe: dict[str, Any], seed: int, out: Path) -> TrainSettings:
    sections: dict[str, dict[str, Any]] = {
        "cache": {"path": str(arguments.cache)},
        "student": {"name": "tiny"},
        "run": {"max_steps": arguments.steps},
        "machine": {"threads": 1},
    }
    for section, values in recipe.items():
        sections[section] = sections.get(section, {}) | values
    return TrainSettings.model_validate_json(json.dumps({**sections, "seed": seed, "out": str(out)}))


def numbers_of(out: Path) -> list[str]:
    """The columns of the table, from metrics.jsonl."""
    run = RunMetrics(out)
    trend, growth, trained = run.trend(), run.memory_growth(), run.last_loss()
    assert trend is not None and growth is not None and trained is not None
    total = len(run.steps) + len(run.skips)
    return [
        f"{len(run.steps)}",
        f"{trend.fall:.1f}",
        f"{trend.last / trend.best - 1:.1%}",
        f"{min(run.shares().values()):.1%}",
        f"{run.validation()[-1] / trained:.2f}",
        f"{len(run.skips) / total:.1%}",
        f"{growth:.2f}",
        f"{run.waiting_share():.0%}",
        ", ".join(f"{check.name}: {check.level}" for check in check_run(out) if check.level != "ok") or "none",
    ]


if __name__ == "__main__":
    main()
