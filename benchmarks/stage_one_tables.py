"""The results of `stage_one.py` as text tables."""

from collections.abc import Callable, Sequence
from typing import Any

MEBI = 1 << 20
Results = dict[str, Any]


def overhead(results: Results) -> str:
    """Seconds, the steps of one run as shares of the bare forward pass, memory."""
    steps, beside, memory = results["profile"]["steps"], results["profile"]["beside"], results["memory"]
    model = steps["layers"] + steps["head"]
    rows = [(step, f"{seconds:.2f}", f"{seconds / model:.2%}") for step, seconds in steps.items()]
    for step, clocks in beside.items():
        rows.append(
            (
                f"in parallel: {step}, on one core",
                f"{clocks['cpu_seconds']:.2f}",
                f"{clocks['cpu_seconds'] / model:.2%}",
            )
        )
    lines = [
        f"{results['positions']:,} positions, {results['tokens_padded']:,} tokens with padding, "
        f"{results['batches']} batches",
        f"bare {results['bare']['seconds']:.2f} s, caching {results['caching']['seconds']:.2f} s: "
        f"{results['caching_over_bare']:.3f} times; of CPU seconds {results['caching_over_bare_of_cpu']:.3f} times",
        "",
        *columns(("step, of a run with timers", "seconds", "over layers and head"), rows),
    ]
    sizes = [
        (what, *(f"{memory[what][name] / MEBI:,.0f}" for name in ("loaded_bytes", "added_bytes", "peak_bytes")))
        for what in ("bare", "cache")
    ]
    sizes.append(("cache over bare", "", f"{memory['added_over_bare']:.3f}", f"{memory['peak_over_bare']:.3f}"))
    return "\n".join([*lines, "", *columns(("memory in MiB", "loaded", "added", "peak"), sizes)])


def bytes_(results: Results) -> str:
    """One row per target kind."""
    names = [name for name in next(iter(results.values()))["bytes_per_position"] if name != "total"]
    rows = []
    for kind, of_kind in results.items():
        per, fidelity = of_kind["bytes_per_position"], of_kind["fidelity"]
        degrees = fidelity["gradient_angle_degrees"]
        rows.append(
            (
                kind,
                f"{of_kind['entries_per_position']['mean']:.2f}",
                f"{per['total']:.2f}",
                f"{of_kind['budget']:.1f}",
                *(f"{per.get(name, 0):.2f}" for name in names),
                f"{fidelity['kl_nats']:.4f}",
                f"{degrees:.2f}" if degrees is not None else "-",
            )
        )
    first = next(iter(results.values()))
    nats = f"entropy {first['entropy_nats']:.2f} nats, label {first['label_nats']:.2f}"
    head = f"{first['positions']:,} positions, {nats}"
    titles = ("bytes per position", "entries", "total", "budget", *names, "KL", "degrees")
    return "\n".join([head, "", *columns(titles, rows)])


def angle(results: Results) -> str:
    """One row per cache, one column per number of positions."""
    stages = list(results["degrees_by_positions"])
    rows = [
        (
            name,
            f"{of_cache['bytes_per_position']['total']:.2f}",
            f"{of_cache['entries_per_position']['mean']:.2f}",
            *(f"{results['degrees_by_positions'][stage][name]:.3f}" for stage in stages),
            f"{results['length_ratio'][name]:.4f}",
        )
        for name, of_cache in results["caches"].items()
    ]
    titles = ("degrees", "bytes", "entries", *(f"{int(stage):,}" for stage in stages), "length")
    return "\n".join(columns(titles, rows))


def scaling(results: Results) -> str:
    """Once, twice, and the ratio."""
    rows = []
    for name, ratio in results["ratio"].items():
        sizes = [results[size][name] for size in ("once", "twice")]
        cells = [f"{size:.2f}" if name.endswith("seconds") else f"{size / MEBI:,.0f} Mi" for size in sizes]
        rows.append((name, *cells, f"{ratio:.3f}"))
    return "\n".join(columns(("data", "once", "twice", "ratio"), rows))


def columns(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned columns, numbers to the right."""
    table = [titles, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(titles))]
    lines = []
    for first, *others in table:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return lines


TABLES: dict[str, Callable[[Results], str]] = {
    "overhead": overhead,
    "bytes": bytes_,
    "angle": angle,
    "scaling": scaling,
}
