"""The results of `stage_two.py` as text tables, and the interval of a median."""

import statistics
from collections.abc import Callable, Sequence
from math import comb
from typing import Any

from stage_one_tables import MEBI, columns

Found = dict[str, Any]
OUTSIDE = 0.05


def interval(values: Sequence[float]) -> dict[str, float]:
    """The median and its 90 % interval by order statistics; for few values, the minimum and maximum."""
    ranked, n = sorted(values), len(values)
    below = 0
    while sum(comb(n, k) for k in range(below + 2)) / 2**n <= OUTSIDE:
        below += 1
    return {"median": statistics.median(ranked), "low": ranked[below], "high": ranked[n - 1 - below]}


def _shown(found: Found) -> str:
    return f"{found['median']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def timed(found: Found) -> str:
    """The peer, seconds per step, the ratio of pairs."""
    medians, peer = found["medians"], found["peer"]
    held = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    extra = f"; teacher {found['teacher_over_student']:.2f} times the student" if peer == "gkd" else ""
    how = f"{found['threads']} threads, {len(found['rounds'])} pairs, {found['parameters']:,} parameters"
    return (
        f"{held}; {how}{extra}\n"
        f"ours {medians['ours']:.2f} s per step, {peer} {medians['theirs']:.2f} s: {_shown(found['ratio'])} times; "
        f"of CPU seconds {_shown(found['ratio_of_cpu'])}"
    )


def _inside(found: Found) -> str:
    """Memory added by steps, and time by part, on each side."""
    sizes = [
        (side, *(f"{of_side[name] / MEBI:,.0f}" for name in ("held_bytes", "added_bytes", "peak_bytes")))
        for side, of_side in found["memory"].items()
    ]
    sizes.append((f"ours over {found['peer']}", "", f"{found['memory_ratio']:.3f}", ""))
    lines = columns(("memory in MiB", "weights and moments", "added", "peak"), sizes)
    for side, profile in found["profile"].items():
        rows = [
            (step, f"{seconds:.2f}", f"{seconds / profile['seconds']:.1%}")
            for step, seconds in profile["steps"].items()
        ]
        lines += ["", *columns((f"{side}, with timers", "seconds", "of all"), rows)]
    return "\n".join(lines)


def step(found: Found) -> str:
    """One block per vocabulary."""
    blocks = (f"{int(size):,} ids\n{timed(of_size)}\n\n{_inside(of_size)}" for size, of_size in found.items())
    return "\n\n".join(blocks)


def scaling(found: Found) -> str:
    """Once, ten times, and the ratio."""
    rows = []
    for name, ratio in found["ratio"].items():
        sizes = [found[size][name] for size in ("once", "ten_times")]
        cells = [f"{size / MEBI:,.0f} Mi" if name.endswith("bytes") else f"{size:.2f}" for size in sizes]
        rows.append((name, *cells, f"{ratio:.3f}"))
    return "\n".join(columns(("steps", *found["steps"], "ratio"), rows))


def waiting(found: Found) -> str:
    """One line."""
    return (
        f"{found['share']:.3%} of the time is spent waiting for the cache: {found['share_of_first_step']:.3%} of the "
        f"first step, {found['median_share_of_later_steps']:.3%} of later ones; "
        f"{found['positions_per_second']:,.0f} positions per second"
    )


def stages(found: Found) -> str:
    """One row per stage."""
    rows = [
        ("cache-teacher", f"{found['teacher_weights'] / MEBI:,.0f}", f"{found['cache_teacher_peak'] / MEBI:,.0f}"),
        ("train", f"{found['student_weights'] / MEBI:,.0f}", f"{found['train_peak'] / MEBI:,.0f}"),
    ]
    ratio = f"the peak of train is {found['train_peak_over_teacher_weights']:.3f} times the teacher's weights"
    return "\n".join([*columns(("memory in MiB", "weights", "peak"), rows), ratio])


TABLES: dict[str, Callable[[Found], str]] = {
    "step": step,
    "gkd": timed,
    "scaling": scaling,
    "waiting": waiting,
    "stages": stages,
}
