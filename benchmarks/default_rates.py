"""Default optimizer and learning rates against a small grid around them.

In: a cache with a validation split, a student, numbers of steps. Out: a line per student on stderr, one JSON document:
agreement, KL and CE on validation of the default and of each cell. The cells are half decades around the defaults of
both optimizers.
"""

import argparse
import json
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from measure import machine, rounded

from kdpipe.pipeline.evaluation.stored import load_evaluation
from kdpipe.pipeline.train import train
from kdpipe.schemas.progress import SilentProgress
from kdpipe.schemas.train_settings import OptimizerSettings, TrainOptions, TrainSettings

HALF_DECADE = 10**0.5
AROUND = (1 / HALF_DECADE, 1.0, HALF_DECADE)


def trained(arguments: argparse.Namespace, steps: int | None, optimizer: dict[str, Any]) -> dict[str, Any]:
    """Train one student; its resolved optimizer and validation metrics."""
    with tempfile.TemporaryDirectory() as place:
        settings = TrainSettings.model_validate(
            {
                "cache": {"path": str(arguments.cache)},
                "student": {"name": arguments.student, "lora": arguments.lora},
                "optimizer": optimizer,
                "run": {"batch_size": arguments.batch_size} | ({} if steps is None else {"max_steps": steps}),
                "evaluation": {"every": 1_000_000},
                "machine": {"device": "cpu", "threads": 1},
                "out": f"{place}/run",
                "seed": arguments.seed,
            }
        )
        report = train(settings, TrainOptions(), SilentProgress())
        evaluation = load_evaluation(Path(place) / "run")
        record = json.loads((Path(place) / "run" / "run.json").read_text())
    assert evaluation is not None, "the cache has a validation split"
    settled = OptimizerSettings.model_validate(record["settings"]["optimizer"])
    row = {
        "optimizer": settled.kind,
        "matrices": settled.rates.matrices,
        "tables": settled.rates.tables,
        "steps": report.steps,
        "top1_agreement": evaluation.top1_agreement,
        "kl_teacher": evaluation.kl_teacher,
        "cross_entropy": evaluation.cross_entropy,
    }
    print(json.dumps(rounded(row)), file=sys.stderr, flush=True)
    return row


def around(default: dict[str, Any], other: dict[str, Any]) -> list[dict[str, Any]]:
    """Grid cells: both learning rates of the default optimizer, and a common factor for the other optimizer."""
    cells = [
        {
            "kind": default["optimizer"],
            "rates": {"matrices": up * default["matrices"], "tables": side * default["tables"]},
        }
        for up, side in product(AROUND, AROUND)
        if (up, side) != (1.0, 1.0)
    ]
    return cells + [{"kind": other["optimizer"], "lr": up * other["matrices"]} for up in AROUND if up != 1.0]


def main() -> None:
    """Train the students and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="A cache with a validation split")
    parser.add_argument("--student", default="tiny", help="As `kdpipe train --student` [tiny]")
    parser.add_argument("--lora", action="store_true", help="Train an adapter")
    parser.add_argument("--steps", type=int, nargs="*", default=[], help="Optimizer steps, several runs [one epoch]")
    parser.add_argument("--batch-size", type=int, default=8, help="Sequences per batch [8]")
    parser.add_argument("--seed", type=int, default=0, help="Random seed [0]")
    arguments = parser.parse_args()
    runs = []
    for steps in arguments.steps or [None]:
        default = trained(arguments, steps, {})
        other = trained(arguments, steps, {"kind": "adamw" if default["optimizer"] == "muon" else "muon"})
        rows = [default, other, *(trained(arguments, steps, cell) for cell in around(default, other))]
        best = max(rows, key=lambda row: row["top1_agreement"])
        behind = best["top1_agreement"] - default["top1_agreement"]
        runs.append({"default": default, "best": best, "points_behind": 100 * behind, "cells": rows})
    print(json.dumps(rounded({"machine": machine(), "student": arguments.student, "runs": runs}), indent=1))


if __name__ == "__main__":
    main()
