"""The recovery table: recovered gain from labels alone to dense distillation by kind, over seeds.

In: one line per student. Out: means, standard deviations and 90 % intervals of the mean by kind; a Markdown table.
Shares are computed seed by seed: a student is compared with the labels and dense students of the same initial weights
and order.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from kdpipe.pipeline.evaluation.spread import student_quantile

Line = dict[str, Any]
NUMBERS = ("cross_entropy", "kl_teacher", "top1_agreement", "ece")


def recovered(lines: Sequence[Line], labels: str, dense: str) -> dict[str, Line]:
    """By kind: metrics, recovered gain seed by seed, calibration error minus that of dense."""
    by_kind: dict[str, dict[int, Line]] = {}
    for line in lines:
        by_kind.setdefault(line["kind"], {})[line["seed"]] = line
    start, end = by_kind[labels], by_kind[dense]
    results = {}
    for kind, by_seed in by_kind.items():
        row: Line = {name: spread([line[name] for line in by_seed.values()]) for name in NUMBERS}
        for name in ("cross_entropy", "kl_teacher"):
            row[f"{name}_recovered"] = spread(
                [share(start[seed][name], line[name], end[seed][name]) for seed, line in by_seed.items()]
            )
        row["ece_over_dense_points"] = spread(
            [100 * (line["ece"] - end[seed]["ece"]) for seed, line in by_seed.items()]
        )
        row["seeds"] = len(by_seed)
        results[kind] = row
    return results


def share(start: float, here: float, end: float) -> float:
    """The share of the distance from start to end."""
    return (start - here) / (start - end)


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """The mean, the standard deviation over seeds, and half the 90 % interval of the mean, None for one seed."""
    n, mean = len(values), statistics.mean(values)
    if n == 1:
        return {"mean": mean, "sd": None, "half_interval": None}
    sd = statistics.stdev(values)
    return {"mean": mean, "sd": sd, "half_interval": student_quantile(n - 1) * sd / math.sqrt(n)}


def table(results: dict[str, Any]) -> str:
    """One table per number of epochs, one row per kind."""
    titles = (
        "targets",
        "bytes",
        "CE",
        "KL",
        "agreement, %",
        "ECE, %",
        "gain recovered in CE, %",
        "90 % interval",
        "gain recovered in KL, %",
        "90 % interval",
        "seeds",
    )
    blocks = []
    for passes, of_passes in results.items():
        rows = [
            (
                kind,
                "-" if row["bytes_per_position"] is None else f"{row['bytes_per_position']:.1f}",
                shown(row["cross_entropy"], 4),
                shown(row["kl_teacher"], 4),
                shown(row["top1_agreement"], 1, 100),
                shown(row["ece"], 2, 100),
                f"{100 * row['cross_entropy_recovered']['mean']:.1f}",
                interval(row["cross_entropy_recovered"]),
                f"{100 * row['kl_teacher_recovered']['mean']:.1f}",
                interval(row["kl_teacher_recovered"]),
                str(row["seeds"]),
            )
            for kind, row in of_passes["kinds"].items()
        ]
        steps = ", ".join(map(str, of_passes["steps"]))
        head = f"{passes} x, {steps} steps; {'; '.join(of_passes['optimizer'])}; mean ± standard deviation over seeds"
        blocks.append("\n".join([head, "", *markdown(titles, rows)]))
    return "\n\n".join(blocks)


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (titles, ["---"] * len(titles), *rows)]


def shown(number: dict[str, Any], digits: int, times: float = 1.0) -> str:
    """A mean with its standard deviation."""
    sd = number["sd"]
    return f"{times * number['mean']:.{digits}f}" + ("" if sd is None else f" ± {times * sd:.{digits}f}")


def interval(share_: dict[str, Any]) -> str:
    """The 90 % interval of the mean of a share, in percent."""
    mean, half = share_["mean"], share_["half_interval"]
    return "-" if half is None else f"{100 * (mean - half):.1f} to {100 * (mean + half):.1f}"
