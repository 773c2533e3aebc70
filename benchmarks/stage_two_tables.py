"""The results of `stage_two.py` as text tables, and the interval of a median."""

import statistics
from collections.abc import Callable, Sequence
from math import comb
from typing import Any

from stage_one_tables import MEBI, columns

Results = dict[str, Any]
OUTSIDE = 0.05


def interval(values: Sequence[float]) -> dict[str, float]:
    """The median and its 90 % interval by order statistics; for few values, the minimum and maximum."""
    ranked, n = sorted(values), len(values)
    below = 0
    while sum(comb(n, k) for k in range(below + 2)) / 2**n <= OUTSIDE:
        below += 1
    return {"median": statistics.median(ranked), "low": ranked[below], "high": ranked[n - 1 - below]}


def _shown(results: Results) -> str:
    return f"{results['median']:.3f} ({results['low']:.3f} to {results['high']:.3f})"


def timed(results: Results) -> str:
    """The peer, seconds per step, the ratio of pairs."""
    medians, peer = results["medians"], results["peer"]
    held = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    extra = f"; teacher {results['teacher_over_student']:.2f} times the student" if peer == "gkd" else ""
    how = f"{results['threads']} threads, {len(results['rounds'])} pairs, {results['parameters']:,} parameters"
    return (
        f"{held}; {how}{extra}\n"
        f"ours {medians['ours']:.2f} s per step, {peer} {medians['theirs']:.2f} s: {_shown(results['ratio'])} times; "
        f"of CPU seconds {_shown(results['ratio_of_cpu'])}"
    )


def _inside(results: Results) -> str:
    """Memory added by steps, and time by part, on each side."""
    sizes = [
        (side, *(f"{of_side[name] / MEBI:,.0f}" for name in ("held_bytes", "added_bytes", "peak_bytes")))
        for side, of_side in results["memory"].items()
    ]
    sizes.append((f"ours over {results['peer']}", "", f"{results['memory_ratio']:.3f}", ""))
    lines = columns(("memory in MiB", "weights and moments", "added", "peak"), sizes)
    for side, profile in results["profile"].items():
        rows = [
            (step, f"{seconds:.2f}", f"{seconds / profile['seconds']:.1%}")
            for step, seconds in profile["steps"].items()
        ]
        lines += ["", *columns((f"{side}, with timers", "seconds", "of all"), rows)]
    return "\n".join(lines)


def step(results: Results) -> str:
    """One block per vocabulary."""
    return "\n\n".join(f"{int(size):,} ids\n{timed_and_measured(of_size)}" for size, of_size in results.items())


def timed_and_measured(results: Results) -> str:
    """Time and memory against one peer."""
    return f"{timed(results)}\n\n{_inside(results)}"


def scaling(results: Results) -> str:
    """Once, ten times, and the ratio."""
    rows = []
    for name, ratio in results["ratio"].items():
        sizes = [results[size][name] for size in ("once", "ten_times")]
        cells = [f"{size / MEBI:,.0f} Mi" if name.endswith("bytes") else f"{size:.2f}" for size in sizes]
        rows.append((name, *cells, f"{ratio:.3f}"))
    return "\n".join(columns(("steps", *results["steps"], "ratio"), rows))


def waiting(results: Results) -> str:
    """One line."""
    return (
        f"{results['share']:.3%} of the time is spent waiting for the cache: "
        f"{results['share_of_first_step']:.3%} of the first step, "
        f"{results['median_share_of_later_steps']:.3%} of later ones; "
        f"{results['positions_per_second']:,.0f} positions per second"
    )


def stages(results: Results) -> str:
    """One row per stage."""
    rows = [
        ("cache-teacher", f"{results['teacher_weights'] / MEBI:,.0f}", f"{results['cache_teacher_peak'] / MEBI:,.0f}"),
        ("train", f"{results['student_weights'] / MEBI:,.0f}", f"{results['train_peak'] / MEBI:,.0f}"),
    ]
    ratio = f"the peak of train is {results['train_peak_over_teacher_weights']:.3f} times the teacher's weights"
    return "\n".join([*columns(("memory in MiB", "weights", "peak"), rows), ratio])


TABLES: dict[str, Callable[[Results], str]] = {
    "step": step,
    "gkd": timed_and_measured,
    "scaling": scaling,
    "waiting": waiting,
    "stages": stages,
}
