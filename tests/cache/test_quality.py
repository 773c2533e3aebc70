"""Fidelity's errors and verdicts, and what a cache gives at each temperature."""

import math

import pytest

from kdpipe.cache.quality import GRADIENT_BATCH, by_temperature, gradient_angle, mean_and_error, verdict
from kdpipe.schemas.part import Fidelity
from kdpipe.schemas.summary import FidelitySummary
from kdpipe.schemas.target_kinds import Imported, NoTargets, Sampled, State, Threshold, TopK
from kdpipe.schemas.targets import TargetSpec

DRAWS = TargetSpec(keep=Threshold(tau=0.04), temperatures=(2.0, 4.0))


def part(angle: float | None, rows: int = 100) -> Fidelity:
    return Fidelity(n_rows=rows, kl_nats=0.0, total_variation=0.0, gradient_angle_degrees=angle)


def measured(**kept: float) -> FidelitySummary:
    return FidelitySummary(
        rows=100,
        parts=2,
        temperature=1.0,
        kl_nats=0.0,
        kl_error=0.0,
        total_variation=0.0,
        total_variation_error=0.0,
        kept_mass={name.removeprefix("t").replace("_", "."): mass for name, mass in kept.items()},
        kept_mass_error={},
        gradient_angle_degrees=None,
        gradient_angle_error=None,
        gradient_batch=None,
        verdict="",
    )


def test_an_error_is_the_spread_of_equal_parts_over_the_root_of_their_number() -> None:
    mean, error = mean_and_error([1.0, 2.0, 3.0, 6.0], [10, 10, 10, 10])
    assert mean == 3.0
    # 4 / 3 is the jackknife's factor; the plain standard error is sqrt(14 / 3 / 4).
    assert error == pytest.approx(math.sqrt(4 / 3) * math.sqrt(14 / 3 / 4))
    assert mean_and_error([1.0], [10]) == (1.0, None)


def test_the_noise_of_draws_shrinks_with_the_root_of_the_batch() -> None:
    degrees = {n: math.degrees(math.atan(5 / math.sqrt(n))) for n in (500, 2_000, GRADIENT_BATCH)}
    for rows in ([500], [2_000], [2_000] * 3, [500, 2_000]):
        angle, error = gradient_angle([part(degrees[n], n) for n in rows], DRAWS)
        assert angle == pytest.approx(degrees[GRADIENT_BATCH])
        assert error is None if len(rows) == 1 else error == pytest.approx(0, abs=1e-9)


def test_a_bias_turns_every_batch_alike() -> None:
    biased = TargetSpec(keep=TopK(k=8))
    assert gradient_angle([part(12.0, 100), part(18.0, 200)], biased)[0] == pytest.approx(16.0)


def test_angles_that_were_not_measured_and_right_angles_are_no_numbers_beyond_bounds() -> None:
    assert gradient_angle([part(12.0), part(None)], DRAWS) == (None, None)
    angle, error = gradient_angle([part(150.0), part(90.0)], DRAWS)
    assert angle is not None and error is not None and 0 < angle < 90


@pytest.mark.parametrize(
    ("spec", "kl", "angle", "word"),
    [
        (DRAWS, 1e-5, 1.0, "good"),
        (DRAWS, 1e-5, 3.0, "fair"),
        (DRAWS, 1e-5, 9.0, "noisy"),
        (DRAWS, 0.1, 1.0, "poor"),
        (DRAWS, 1e-5, None, "unknown"),
        (TargetSpec(keep=TopK(k=8)), 1e-5, 9.0, "biased"),
        (TargetSpec(keep=TopK(k=800)), 1e-5, 0.5, "good"),
    ],
)
def test_the_verdict_follows_from_bias_noise_and_coding(
    spec: TargetSpec, kl: float, angle: float | None, word: str
) -> None:
    assert verdict(spec, kl, angle).startswith(f"{word}: ")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (DRAWS, {"1.0": "unbiased", "2.0": "coarse", "4.0": "coarse"}),
        (TargetSpec(keep=Sampled(draws=8), temperatures=()), {"1.0": "unbiased"}),
        (
            TargetSpec(keep=Threshold(tau=0.04), target_temperature=2.0, temperatures=(2.0,), draw_values=True),
            {"1.0": "coarse", "2.0": "unbiased"},
        ),
        (TargetSpec(keep=TopK(k=8), temperatures=(2.0,)), {"1.0": "coarse", "2.0": "coarse"}),
        (TargetSpec(keep=State(width=8), temperatures=(2.0,)), {"1.0": "exact", "2.0": "exact"}),
        (TargetSpec(keep=Imported(source="x", max_entries=8), temperatures=(), entropy=False), {}),
        (TargetSpec(keep=NoTargets(), temperatures=(), entropy=False), {}),
    ],
    ids=lambda value: value.keep.kind if isinstance(value, TargetSpec) else None,
)
def test_each_temperature_is_exact_unbiased_or_coarse(spec: TargetSpec, expected: dict[str, str]) -> None:
    found = by_temperature(spec, measured(t1_0=0.8, t2_0=0.2, t4_0=0.05), None)
    assert {t: one.targets for t, one in found.items()} == expected
    assert [one.shifted for one in found.values()] == [False] * len(found)
    if "1.0" in found and spec.keep.kind != "state":
        assert found["1.0"].kept_mass == 0.8


def test_full_mass_is_exact_and_missing_values_are_reported() -> None:
    whole = by_temperature(TargetSpec(keep=TopK(k=512), temperatures=(2.0,)), measured(t1_0=1.0, t2_0=0.99), None)
    assert {t: one.targets for t, one in whole.items()} == {"1.0": "exact", "2.0": "coarse"}
    plain = TargetSpec(keep=Threshold(tau=0.04), target_temperature=2.0, temperatures=(2.0,))
    assert by_temperature(plain, None, None)["2.0"].shifted


def test_mass_at_temperature_1_is_known_without_fidelity() -> None:
    found = by_temperature(TargetSpec(keep=TopK(k=8), temperatures=(2.0,)), None, 0.25)
    assert {t: one.kept_mass for t, one in found.items()} == {"1.0": 0.75, "2.0": None}
