"""Deviation of many samples of one distribution from it, in standard deviations.

In: a spec, the probabilities, and rows of them that were reduced. Out: deviations of draws and of mean weights.
"""

import math

import numpy as np

from kdpipe.pipeline.targets.reduce import ReducedRows
from kdpipe.schemas.target_kinds import Sampled
from kdpipe.schemas.targets import TargetSpec
from support import dense_twin
from support.reducing import rows_of


def expectation(spec: TargetSpec, p: np.ndarray, reduced: ReducedRows) -> tuple[np.ndarray, float]:
    """How likely each id is to be one given draw, and what a draw weighs."""
    if isinstance(spec.keep, Sampled):
        rest = p.copy()
        rest[p.argmax()] = 0.0
        return rest / rest.sum(), float(rest.sum()) / spec.keep.draws
    plan = dense_twin.threshold(p, int(reduced.n_exact_R[0] + reduced.n_draws_R[0]))
    rest = np.where(plan.chances < 1, p, 0.0)
    return rest / max(rest.sum(), 1e-300), plan.share


def deviation_of_draws(spec: TargetSpec, p: np.ndarray, reduced: ReducedRows) -> float:
    """Chi-square of draws that are independent: all of a kind with replacement, one of each row otherwise."""
    n_draws, n_exact = reduced.n_draws_R.numpy(), reduced.n_exact_R.numpy()
    chances, _ = expectation(spec, p, reduced)
    ids = reduced.ids_RK.numpy()
    if reduced.times_RK is not None:
        slots = np.arange(ids.shape[1])
        drawn = (slots >= n_exact[:, None]) & (slots < (n_exact + n_draws)[:, None])
        counts = np.bincount(ids[drawn], reduced.times_RK.numpy()[drawn], minlength=len(p))
    else:
        picked = np.random.default_rng(0).integers(0, n_draws)
        counts = np.bincount(ids[np.arange(len(ids)), n_exact + picked], minlength=len(p))
    if counts[chances == 0].any():
        return math.inf
    return dense_twin.chi_square_deviation(counts, chances * counts.sum())


def deviation_of_means(spec: TargetSpec, p: np.ndarray, reduced: ReducedRows) -> float:
    """Deviation of the mean weight of any id from its p, in standard deviations; ids rarely drawn count together."""
    chances, share = expectation(spec, p, reduced)
    sums = np.zeros(len(p))
    for row in rows_of(reduced, spec):
        for i, weight in row.weights.items():
            sums[i] += weight
    n = len(reduced.n_exact_R)
    if isinstance(spec.keep, Sampled):
        variance = chances * (1 - chances) * spec.keep.draws * share**2 * n
    else:
        variance = np.where(chances > 0, p * np.maximum(share - p, 0), 0) * n
    often = (chances > 0) & (p * n > 25 * share)
    rare = (chances > 0) & ~often
    exact = np.abs(sums - p * n)[chances == 0]
    # Weights are float32 numbers: their sum is off by 1e-6 and more in every row.
    worst = float((exact / (1e-5 * n)).max(initial=0.0))
    rounding = (1e-6 * p * n) ** 2
    worst = max(worst, float((np.abs(sums - p * n) / np.sqrt(variance + rounding))[often].max(initial=0.0)))
    if rare.any():
        worst = max(worst, float(abs((sums - p * n)[rare].sum()) / np.sqrt(variance[rare].sum() + share**2)))
    return worst
