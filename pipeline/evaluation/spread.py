"""Differences between two evaluations of the same sequences, with their spread.

In: two `Evaluation`s. Out: a `Difference` a number, or none where they have not read the same. Before it: `stored.py`.
After it: `pipeline/compare.py`. Sequences are drawn, positions in them are not independent: the spread is that of a
ratio of sums over sequences (Cochran 1977, Sampling Techniques, 6.3), in pairs, which takes out what is hard for both.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from kdpipe.schemas.train_report import Difference, Evaluation

# Half the width of a 90 % interval is this many standard errors, if there were endlessly many sequences.
QUANTILE = NormalDist().inv_cdf(0.95)
Columns = Sequence[float] | Sequence[int] | None


def same_sequences(one: Evaluation, other: Evaluation) -> bool:
    """Whether both have read the same positions of the same cache."""
    return (
        (one.cache_id, one.split) == (other.cache_id, other.split)
        and one.by_sequence.numbers == other.by_sequence.numbers
        and one.by_sequence.positions == other.by_sequence.positions
    )


def differences(first: Evaluation, other: Evaluation) -> dict[str, Difference]:
    """How much higher the numbers of another are than the first's; calibration has no sum over positions, so no
    spread."""
    if not same_sequences(first, other):
        return {}
    one, two = first.by_sequence, other.by_sequence
    columns: dict[str, tuple[Columns, Columns]] = {
        "cross_entropy": (one.cross_entropy, two.cross_entropy),
        "kl_teacher": (one.kl_teacher, two.kl_teacher),
        "top1_agreement": (one.agreed, two.agreed),
    }
    sizes = np.array(one.positions, np.float64)
    found = {
        name: paired(np.array(b, np.float64) - np.array(a, np.float64), sizes)
        for name, (a, b) in columns.items()
        if a is not None and b is not None
    }
    return found | {"ece": Difference(value=other.ece - first.ece, spread=None)}


def paired(sums: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64]) -> Difference:
    """The mean over positions, and half its 90 % interval over sequences."""
    n, whole = len(sums), float(sizes.sum())
    value = float(sums.sum()) / whole
    if n < 2:
        return Difference(value=value, spread=None)
    residuals = sums - value * sizes
    error = math.sqrt(n / (n - 1) * float((residuals**2).sum())) / whole
    return Difference(value=value, spread=student_quantile(n - 1) * error)


def student_quantile(freedom: int) -> float:
    """The 95 % quantile of Student's t (Cornish-Fisher expansion, Abramowitz and Stegun 26.7.5; exact for 1 and 2)."""
    if freedom == 1:
        return math.tan(math.pi * 0.45)
    if freedom == 2:
        return 0.9 * math.sqrt(2 / (1 - 0.9**2))
    z, v = QUANTILE, float(freedom)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )
