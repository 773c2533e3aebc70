"""Differences between two evaluations of the same positions, with 90 % intervals.

In: two `Evaluation`s. Out: a `Difference` per metric, none where the positions differ. Positions of one document are
correlated, across the sequences it was cut into too, so the sampling unit is the document: the difference is a ratio
of sums over documents (Cochran 1977, Sampling Techniques, 6.3), taken in pairs, which cancels common difficulty.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from kdpipe.schemas.train_report import Difference, Evaluation

# Half the width of a 90 % interval in standard errors, for infinitely many documents.
QUANTILE = NormalDist().inv_cdf(0.95)
Columns = Sequence[float] | Sequence[int] | None


def same_positions(one: Evaluation, other: Evaluation) -> bool:
    """Whether both were evaluated on the same positions of the same cache."""
    return (
        (one.cache_id, one.split) == (other.cache_id, other.split)
        and one.by_document.numbers == other.by_document.numbers
        and one.by_document.positions == other.by_document.positions
    )


def differences(first: Evaluation, other: Evaluation) -> dict[str, Difference]:
    """Other minus first for each metric; the calibration error is not a sum over positions and has no interval."""
    if not same_positions(first, other):
        return {}
    one, two = first.by_document, other.by_document
    columns: dict[str, tuple[Columns, Columns]] = {
        "cross_entropy": (one.cross_entropy, two.cross_entropy),
        "kl_teacher": (one.kl_teacher, two.kl_teacher),
        "top1_agreement": (one.agreed, two.agreed),
    }
    sizes = np.array(one.positions, np.float64)
    metrics = {
        name: paired(np.array(b, np.float64) - np.array(a, np.float64), sizes)
        for name, (a, b) in columns.items()
        if a is not None and b is not None
    }
    return metrics | {"ece": Difference(value=other.ece - first.ece, spread=None)}


def paired(sums: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64]) -> Difference:
    """The mean over positions, and half its 90 % interval over documents.

    A long document pulls the mean toward itself and shrinks its own residual: each residual is divided by 1 - its share
    (HC3, the jackknife; MacKinnon and White 1985), and Student's t has the degrees of freedom of the effective number
    of documents, (sum of sizes)^2 / sum of squares (Kish 1965). Coverage: docs/experiments.md#intervals-of-compare.
    """
    n, whole = len(sums), float(sizes.sum())
    value = float(sums.sum()) / whole
    if n < 2:
        return Difference(value=value, spread=None)
    residuals = sums - value * sizes
    error = math.sqrt(float(((residuals / (1 - sizes / whole)) ** 2).sum())) / whole
    n_effective = whole**2 / float((sizes**2).sum())
    return Difference(value=value, spread=student_quantile(max(1.0, n_effective - 1)) * error)


def student_quantile(freedom: float) -> float:
    """The 95 % quantile of Student's t: exact for 1 and 2 degrees of freedom, linear in their inverse between them,
    above by the Cornish-Fisher expansion (Abramowitz and Stegun 26.7.5)."""
    assert freedom >= 1
    if freedom <= 2:
        at_one, at_two = math.tan(math.pi * 0.45), 0.9 * math.sqrt(2 / (1 - 0.9**2))
        return at_two + (at_one - at_two) * (2 / freedom - 1)
    z, v = QUANTILE, freedom
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )
