"""The recovery table: how much of the way from labels alone to dense distillation each kind comes, over seeds.

In: a line a student. Out: means and spreads by kind; lines for a person. Before it: `recovery.py`, which prints the
same as JSON beside it. After it: nothing.
"""

import statistics
from collections.abc import Sequence
from typing import Any

from stage_one_tables import columns

Line = dict[str, Any]
NUMBERS = ("cross_entropy", "kl_teacher", "top1_agreement", "ece")


def recovered(lines: Sequence[Line], labels: str, dense: str) -> dict[str, Line]:
    """By kind: numbers, shares of the way from labels to dense seed by seed, calibration error beside dense's."""
    by_kind: dict[str, dict[int, Line]] = {}
    for line in lines:
        by_kind.setdefault(line["kind"], {})[line["seed"]] = line
    start, end = by_kind[labels], by_kind[dense]
    found = {}
    for kind, by_seed in by_kind.items():
        row: Line = {name: spread([one[name] for one in by_seed.values()]) for name in NUMBERS}
        for name in ("cross_entropy", "kl_teacher"):
            row[f"{name}_recovered"] = spread(
                [share(start[seed][name], one[name], end[seed][name]) for seed, one in by_seed.items()]
            )
        row["ece_over_dense_points"] = spread([100 * (one["ece"] - end[seed]["ece"]) for seed, one in by_seed.items()])
        found[kind] = row
    return found


def share(start: float, here: float, end: float) -> float:
    """How much of the way from start to end is behind one."""
    return (start - here) / (start - end)


def spread(values: Sequence[float]) -> dict[str, float]:
    """The mean, and the standard deviation over seeds, 0 for one."""
    return {"mean": statistics.mean(values), "sd": statistics.stdev(values) if len(values) > 1 else 0.0}


def table(found: dict[str, Any]) -> str:
    """A block for each number of passes, a row a kind."""
    blocks = []
    for passes, of_passes in found.items():
        rows = [
            (
                kind,
                "-" if row["bytes_a_position"] is None else f"{row['bytes_a_position']:.1f}",
                _shown(row["cross_entropy"], 4),
                _shown(row["kl_teacher"], 4),
                _shown(row["ece"], 2, 100),
                _shown(row["cross_entropy_recovered"], 1, 100),
                _shown(row["kl_teacher_recovered"], 1, 100),
                _shown(row["ece_over_dense_points"], 2),
            )
            for kind, row in of_passes["kinds"].items()
        ]
        titles = ("targets", "bytes", "CE", "KL", "ECE %", "of CE, %", "of KL, %", "ECE to dense, points")
        head = f"{passes} x, {', '.join(map(str, of_passes['steps']))} steps, mean ± standard deviation over seeds"
        blocks.append("\n".join([head, *columns(titles, rows)]))
    return "\n\n".join(blocks)


def _shown(number: dict[str, float], digits: int, times: float = 1.0) -> str:
    return f"{times * number['mean']:.{digits}f} ± {times * number['sd']:.{digits}f}"
