"""The slow twin of `pipeline/targets`: what must be kept of a distribution, from its definition, in float64.

In: the logits of one row. Out: probabilities, scalars, which ids are exact and how likely each other id is drawn. It
shares no code with what it checks, solves tau' by bisection, and never looks at more than one row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]


def log_softmax(logits: npt.ArrayLike, temperature: float = 1.0) -> Doubles:
    """Log p at a temperature; minus infinity stays."""
    z = np.asarray(logits, np.float64) / temperature
    top = z.max()
    result: Doubles = z - top - math.log(np.exp(z - top).sum())
    return result


def scalars(
    logits: npt.ArrayLike, label: int, temperatures: Sequence[float], starts_word: npt.NDArray[np.bool_]
) -> dict[str, float]:
    """The scalars of a row that do not depend on what is kept, by the names of their columns."""
    logp = log_softmax(logits)
    p = np.exp(logp)
    there = p > 0
    found = {"entropy": float(-(p[there] * logp[there]).sum()), "label_logprob": float(logp[label])}
    for temperature in temperatures:
        found[f"log_z@{temperature}"] = math.log((p[there] ** (1 / temperature)).sum())
    mass = float(p[starts_word].sum())
    found["boundary_logprob"] = math.log(mass) if mass else -math.inf
    return found


def by_rank(logits: npt.ArrayLike) -> list[int]:
    """All ids, the most probable first, equal ones by ascending id."""
    z = np.asarray(logits, np.float64)
    return sorted(range(len(z)), key=lambda i: (-z[i], i))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a row is kept: `chances` is how likely each id is in it, 1 for the exact ones; `share` what a draw weighs."""

    n: int
    chances: Doubles
    share: float


def entries_wanted(p: Doubles, tau: float) -> float:
    """The number of entries before it is rounded up."""
    return float(np.minimum(p / tau, 1).sum())


def threshold(p: Doubles, n: int) -> Plan:
    """Threshold sampling with n entries: tau' solves sum of min(1, p / tau') = n; the most probable id is exact."""
    first = int(p.argmax())
    rest = p.copy()
    rest[first] = 0.0
    if n <= 1 or (rest > 0).sum() <= n - 1:
        return Plan(n=n, chances=(p > 0).astype(float), share=0.0)
    share = _solved(p, n)
    if p[first] < share:
        share = _solved(rest, n - 1)
    chances = np.minimum(p / share, 1)
    chances[first] = 1.0
    return Plan(n=n, chances=chances, share=share)


def _solved(p: Doubles, n: int) -> float:
    """The share at which as many ids as n are expected."""
    low, high = 0.0, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(p / middle, 1).sum() > n else (low, middle)
    return high


def top_p(p: Doubles, wanted: float, most: int) -> int:
    """The fewest most probable ids whose mass reaches what is wanted."""
    mass = np.cumsum(np.sort(p)[::-1])
    return min(most, int((mass < wanted).sum()) + 1)


def chi_square_deviation(counts: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    """How far counts lie from what is expected, in standard deviations (Wilson and Hilferty 1931).

    Cells with fewer than 10 expected are thrown together.
    """
    seen, due = np.asarray(counts, np.float64), np.asarray(expected, np.float64)
    assert abs(seen.sum() - due.sum()) < 1e-6 * due.sum()
    order = np.argsort(due)
    cells: list[list[float]] = [[0.0, 0.0]]
    for i in order:
        if cells[-1][1] >= 10:
            cells.append([0.0, 0.0])
        cells[-1][0] += seen[i]
        cells[-1][1] += due[i]
    if cells[-1][1] < 10 and len(cells) > 1:
        last = cells.pop()
        cells[-1] = [cells[-1][0] + last[0], cells[-1][1] + last[1]]
    freedom = len(cells) - 1
    statistic = sum((a - b) ** 2 / b for a, b in cells)
    return float(((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom)))
