"""The results of `optimizer_sweep.py` as Markdown: a line for each optimizer, kind and size, and grids of KL.

In: its `--work`, finished or not. Out: tables on stdout. A grid has learning rates of matrices as rows and of tables as
columns; a cell is the KL to the teacher, with several seeds mean and standard deviation; `*` is the best.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

GROUP = ("kind", "size", "optimizer", "tokens", "precision", "tied")
COLUMNS = (
    *("kind", "parameters", "head", "tokens", "precision", "optimizer", "matrices", "tables"),
    *("KL", "CE", "agreement", "cells", "students"),
)
Row = dict[str, Any]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="Folder of the sweep")
    rows = results(parser.parse_args().work)
    groups = sorted({tuple(row[name] for name in GROUP) for row in rows}, key=lambda key: (key[0], _n(key[1]), key[2:]))
    own = {key: [row for row in rows if tuple(row[name] for name in GROUP) == key] for key in groups}
    print(summary(own))
    for key, members in own.items():
        print(f"\n{title(key)}\n\n{grid(members)}")


def results(work: Path) -> list[Row]:
    """Every student of every sweep in a folder."""
    rows = []
    for path in sorted(work.glob("sweep-of-*/sweep-*.jsonl")):
        precision = path.stem.removeprefix("sweep-")
        lines = path.read_text(encoding="utf-8").splitlines()
        rows += [{**json.loads(line), "precision": precision} for line in lines]
    return rows


def summary(own: dict[tuple[Any, ...], list[Row]]) -> str:
    """The best cell of each group."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for members in own.values():
        by_cell = cells(members)
        # Cells with more seeds go first: the best of single seeds is biased.
        most = max(len(values) for values in by_cell.values())
        best = min((key for key, values in by_cell.items() if len(values) == most), key=lambda key: kl(by_cell[key]))
        first, seeds = members[0], by_cell[best]
        lines.append(
            f"| {first['kind']} | {first['parameters'] / 1e6:.3g} M | {head(first['tied'])} | {first['tokens']:,} "
            f"| {first['precision']} | {first['optimizer']} | {10 ** best[0]:.2g} | {10 ** best[1]:.2g} "
            f"| {shown(seeds)} | {statistics.mean(row['cross_entropy'] for row in seeds):.3f} "
            f"| {statistics.mean(row['top1_agreement'] for row in seeds):.1%} | {len(by_cell)} | {len(members)} |"
        )
    return "\n".join(lines)


def cells(members: list[Row]) -> dict[tuple[float, float], list[Row]]:
    """Students by learning rates of matrices and tables, as powers of ten."""
    rows: dict[tuple[float, float], list[Row]] = {}
    for row in members:
        rows.setdefault((row["matrices"], row["tables"]), []).append(row)
    return rows


def grid(members: list[Row]) -> str:
    """KL by both learning rates."""
    by_cell = cells(members)
    across = sorted({tables for _, tables in by_cell})
    best = min(by_cell, key=lambda key: kl(by_cell[key]))
    lines = [
        f"| matrices \\ tables | {' | '.join(f'{10**tables:.2g}' for tables in across)} |",
        "|---" * (len(across) + 1) + "|",
    ]
    for matrices in sorted({matrices for matrices, _ in by_cell}):
        values = [
            f"{shown(by_cell[key])}{' *' if key == best else ''}" if (key := (matrices, tables)) in by_cell else ""
            for tables in across
        ]
        lines.append(f"| {10**matrices:.2g} | {' | '.join(values)} |")
    return "\n".join(lines)


def title(key: tuple[Any, ...]) -> str:
    """Heading of a grid."""
    kind, size, optimizer, tokens, precision, tied = key
    return f"{kind}, {size}, {head(tied)} head, {optimizer}, {tokens:,} tokens, {precision}:"


def head(tied: bool) -> str:
    """Whether the output head shares the weights of the embeddings."""
    return "tied" if tied else "own"


def kl(seeds: list[Row]) -> float:
    """The mean over seeds."""
    return statistics.mean(row["kl_teacher"] for row in seeds)


def shown(seeds: list[Row]) -> str:
    """Mean and standard deviation over seeds."""
    spread = f" ± {statistics.stdev(row['kl_teacher'] for row in seeds):.3f}" if len(seeds) > 1 else ""
    return f"{kl(seeds):.3f}{spread}"


def _n(size: str) -> float:
    return float(size.removesuffix("M"))


if __name__ == "__main__":
    main()
