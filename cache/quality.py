"""The quality of a cache for training: fidelity with standard errors and a verdict, and a summary by temperature.

In: the parts' records and the target spec. Out: parts of a `CacheSummary`. Errors are standard errors from the spread
between parts, which hold different documents: positions of one document are alike, so rows are no independent sample.
"""

import math
from collections.abc import Sequence

import numpy as np

from kdpipe.schemas.part import Fidelity, PartRecord
from kdpipe.schemas.summary import FidelitySummary, TemperatureSummary
from kdpipe.schemas.targets import TargetSpec

# Positions of the batch whose gradient angle is shown (docs/experiments.md quotes angles of about as many).
GRADIENT_BATCH = 1 << 16
# Degrees at that batch: students recovered about 95 % of the gain in KL up to the first, `lean` caches of uncertain
# teachers have more than the second: docs/cache-teacher.md#fidelity.
GOOD_DEGREES, FAIR_DEGREES = 2.0, 5.0
# Allowed KL of coding: a tenth of the differences between students that an evaluation resolves.
LARGEST_CODING_KL = 1e-3
# Mass of the exact ids from which the remaining bin carries no signal.
EXACT_MASS = 0.999
# Beyond this angle the length of a difference cannot be computed.
LARGEST_ANGLE = 89.0


def fidelity(records: Sequence[PartRecord], targets: TargetSpec) -> FidelitySummary | None:
    """The fidelity over all parts, weighted by measured rows; None if no part was measured."""
    known = [record.fidelity for record in records if record.fidelity is not None and record.fidelity.n_rows]
    if not known:
        return None
    rows = [part.n_rows for part in known]
    kl, kl_error = mean_and_error([part.kl_nats for part in known], rows)
    variation, variation_error = mean_and_error([part.total_variation for part in known], rows)
    temperatures = sorted({t for part in known for t, _ in part.kept_mass})
    masses = {repr(t): mean_and_error([dict(part.kept_mass).get(t, 0.0) for part in known], rows) for t in temperatures}
    angle, angle_error = gradient_angle(known, targets)
    return FidelitySummary(
        rows=sum(rows),
        parts=len(known),
        temperature=targets.target_temperature,
        kl_nats=kl,
        kl_error=kl_error,
        total_variation=variation,
        total_variation_error=variation_error,
        kept_mass={t: mass for t, (mass, _) in masses.items()},
        kept_mass_error={t: error for t, (_, error) in masses.items()},
        gradient_angle_degrees=angle,
        gradient_angle_error=angle_error,
        gradient_batch=None if angle is None else GRADIENT_BATCH,
        verdict=verdict(targets, kl, angle),
    )


def mean_and_error(values: Sequence[float], rows: Sequence[int]) -> tuple[float, float | None]:
    """The mean over rows, and its standard error from the spread between parts; None for a single part.

    Each part's residual is divided by 1 - its share of the rows (the jackknife), so that one large part cannot hide it.
    """
    x, n = np.array(values, np.float64), np.array(rows, np.float64)
    mean = float((x * n).sum() / n.sum())
    if len(x) < 2:
        return mean, None
    residuals = n * (x - mean) / (1 - n / n.sum())
    return mean, float(math.sqrt((residuals**2).sum()) / n.sum())


def gradient_angle(known: Sequence[Fidelity], targets: TargetSpec) -> tuple[float | None, float | None]:
    """Degrees between the gradients of dense and of stored targets over `GRADIENT_BATCH` positions, with an error.

    The noise of draws grows with the root of the rows and the gradient with the rows, so that rows * tan^2 of an angle
    is the same for any number of them. What is biased turns the gradient of any batch by the same angle.
    """
    angles = [part.gradient_angle_degrees for part in known]
    if any(angle is None for angle in angles):
        return None, None
    degrees = [min(angle, LARGEST_ANGLE) for angle in angles if angle is not None]
    rows = [part.n_rows for part in known]
    if not targets.has_draws:
        return mean_and_error(degrees, rows)
    tangents = [math.tan(math.radians(angle)) for angle in degrees]
    square, error = mean_and_error([n * t**2 / GRADIENT_BATCH for n, t in zip(rows, tangents, strict=True)], rows)
    tangent = math.sqrt(square)
    if error is not None:
        # d(atan sqrt x) = dx / (2 sqrt x (1 + x))
        error = math.degrees(error / (2 * tangent * (1 + square))) if tangent else 0.0
    return math.degrees(math.atan(tangent)), error


def verdict(targets: TargetSpec, kl_nats: float, angle: float | None) -> str:
    """What the fidelity means for training, in one line."""
    if kl_nats > LARGEST_CODING_KL:
        return f"poor: stored numbers differ from the teacher's by more than {LARGEST_CODING_KL:g} nats of KL"
    if angle is None:
        return "unknown: the teacher's output head is not a single matrix, so gradients were not compared"
    if not targets.has_draws:
        if angle <= GOOD_DEGREES:
            return "good: the omitted mass hardly changes a student's gradient"
        return "biased: no batch size or number of steps removes this angle; --targets threshold is unbiased"
    if angle <= GOOD_DEGREES:
        return "good: unbiased, and draws add little noise to a student's gradient"
    if angle <= FAIR_DEGREES:
        return "fair: unbiased, but draws add noise; a finer profile or more positions help"
    return "noisy: unbiased, but noise of the draws dominates a batch; cache again with a finer --profile or --tau"


def by_temperature(
    targets: TargetSpec, measured: FidelitySummary | None, tail_mass: float | None
) -> dict[str, TemperatureSummary]:
    """The summary for training at each known temperature; empty if the teacher's tail mass is unknown."""
    if not targets.keep.complete and not targets.tail_known:
        return {}
    masses = {} if measured is None else dict(measured.kept_mass)
    if tail_mass is not None:
        masses.setdefault(repr(1.0), 1 - tail_mass)
    temperatures = sorted({1.0, targets.target_temperature, *targets.temperatures})
    return {repr(t): _summary_at(t, targets, masses.get(repr(t))) for t in temperatures}


def _summary_at(temperature: float, targets: TargetSpec, mass: float | None) -> TemperatureSummary:
    at_target = temperature == targets.target_temperature
    if targets.keep.complete or (mass is not None and mass >= EXACT_MASS):
        return TemperatureSummary(targets="exact", kept_mass=mass, shifted=False)
    if targets.has_draws and at_target:
        return TemperatureSummary(targets="unbiased", kept_mass=mass, shifted=targets.is_shifted)
    return TemperatureSummary(targets="coarse", kept_mass=mass, shifted=False)
