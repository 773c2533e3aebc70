"""The guard: what is accepted, skipped, rolled back and stopped, in counts and in words."""

import math
import random
import statistics

import pytest

from kdpipe.pipeline.losses.terms import ActiveTerms
from kdpipe.pipeline.training.guard import (
    Guard,
    GuardValues,
    NotFiniteFinding,
    clamp_warnings,
    largest_probability,
    resolve,
)
from kdpipe.schemas.checkpoint import GuardState
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.train_settings import GuardSettings, OptimizerSettings

BAD = (NotFiniteFinding(where="forward_kl", what="its value", sequences=(3, 7)),)
GRADIENT = (NotFiniteFinding(where="gradient", what="it overflowed"),)


def kinds(guard: Guard, norms: list[float]) -> list[str]:
    return [guard.judge((), norm).kind for norm in norms]


def test_every_finding_is_a_skip_that_names_it_and_is_counted() -> None:
    guard = Guard(GuardValues())
    for where in ("logits", "targets", "forward_kl", "gradient"):
        verdict = guard.judge((NotFiniteFinding(where=where, what="x", sequences=tuple(range(7))),), 1.0)
        assert verdict.kind == "skip"
        assert verdict.why == f"{where} (x) not finite, sequences 0, 1, 2, 3, 4 and 2 more"
    assert (guard.state.skipped, guard.state.in_a_row, guard.success_rate) == (4, 4, 0.0)
    assert kinds(guard, [1.0] * 4) == ["accept"] * 4
    assert (guard.state.skipped, guard.state.in_a_row, guard.success_rate) == (4, 0, 0.5)


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_is_a_skip_without_any_finding(norm: float) -> None:
    verdict = Guard(GuardValues()).judge((), norm)
    assert (verdict.kind, verdict.why) == ("skip", "gradient not finite")


def test_no_norm_is_too_large_before_there_is_a_median() -> None:
    guard = Guard(GuardValues())
    assert kinds(guard, [1.0] * 7 + [1e9]) == ["accept"] * 8


@pytest.mark.parametrize("step", [9, 50, 127, 128, 129, 500])
def test_a_spike_is_skipped_from_the_eighth_accepted_step_on(step: int) -> None:
    """And does not change what the next one is compared with."""
    rng = random.Random(step)
    norms = [math.exp(rng.gauss(0, 0.3)) for _ in range(step - 1)]
    guard = Guard(GuardValues(patience=99))
    assert kinds(guard, norms) == ["accept"] * (step - 1)
    before = guard.state
    verdict = guard.judge((), 1e6 * norms[-1])
    assert verdict.kind == "skip"
    assert "guard.median_factor" in verdict.why
    assert (guard.state.norms, guard.state.fresh) == (before.norms, before.fresh)
    assert kinds(guard, [1e6, 1.0, 1e6]) == ["skip", "accept", "skip"]


@pytest.mark.parametrize("later", range(8))
def test_a_spike_is_skipped_right_after_a_phase_begins_and_a_larger_scale_is_not(later: int) -> None:
    guard = Guard(GuardValues(patience=99))
    kinds(guard, [1.0] * 130)
    guard.enter(1)
    # Gradients of another loss may have another scale.
    assert kinds(guard, [100.0] * later) == ["accept"] * later
    assert kinds(guard, [1e6, 100.0, 1e8]) == ["skip", "accept", "skip"]
    assert guard.state.norms[-1] == 100.0 and max(guard.state.norms) == 100.0


def test_a_spike_is_skipped_right_after_a_rollback() -> None:
    guard = Guard(GuardValues(patience=2, ce_only_steps=3))
    kinds(guard, [1.0] * 20)
    assert [guard.judge(BAD, 1.0).kind for _ in range(2)] == ["skip", "rollback"]
    for _ in range(12):
        assert kinds(guard, [1e6, 2.0]) == ["skip", "accept"]
    assert max(guard.state.norms) == 2.0


def test_the_median_is_that_of_the_phase_or_of_the_last_few_norms_if_larger() -> None:
    guard = Guard(GuardValues(median_factor=3.0, patience=99))
    kinds(guard, [float(n) for n in range(1, 10)])
    assert kinds(guard, [18.1]) == ["skip"]  # 3 x the median of 2 to 9 is 16.5, of all 15
    assert kinds(guard, [16.4]) == ["accept"]
    guard.enter(1)
    assert kinds(guard, [165.1, 164.9]) == ["skip", "accept"]  # 10 x 3 x the median of ten


def test_norms_that_grow_steadily_are_no_spikes() -> None:
    guard = Guard(GuardValues(sigma=1e6))
    assert set(kinds(guard, [1e-6 * 1.5**n for n in range(120)])) == {"accept"}


def test_norms_are_compared_with_mean_and_deviation_of_the_last_accepted() -> None:
    rng = random.Random(0)
    norms = [math.exp(rng.gauss(0, 0.5)) for _ in range(400)]
    guard, accepted = Guard(GuardValues(window=128, sigma=3.0, patience=99)), list[float]()
    for norm in norms:
        last = accepted[-128:]
        wide = len(last) == 128 and norm > statistics.fmean(last) + 3 * statistics.pstdev(last)
        assert guard.judge((), norm).kind == ("skip" if wide else "accept")
        accepted += [] if wide else [norm]
    assert guard.state.norms == tuple(accepted[-128:])
    assert 0 < guard.state.skipped < 20


def test_a_quiet_window_does_not_reject_a_normal_norm() -> None:
    guard = Guard(GuardValues(window=16))
    assert kinds(guard, [1.0] * 16 + [2.4]) == ["accept"] * 17
    verdict = guard.judge((), 4.0)
    assert verdict.kind == "skip"
    assert all(text in verdict.why for text in ("gradient norm 4 ", "6 deviations", "16", "guard.sigma"))


def test_an_absolute_limit_holds_from_the_first_step() -> None:
    guard = Guard(GuardValues(skip_gradient_norm=2.0))
    assert kinds(guard, [2.0, 2.01]) == ["accept", "skip"]
    assert "gradient norm 3 exceeds 2 (guard.skip_gradient_norm)" in guard.judge((), 3.0).why


def test_deviations_start_over_with_another_phase_and_not_within_one() -> None:
    guard = Guard(GuardValues(window=8))
    kinds(guard, [1.0] * 8)
    guard.enter(0)
    assert guard.judge((), 15.0).kind == "skip"
    guard.enter(1)
    assert (guard.state.norms, guard.state.fresh) == ((1.0,) * 8, 0)
    assert guard.judge((), 15.0).kind == "accept"


def test_repeated_skips_roll_back_at_a_lower_learning_rate_and_then_stop() -> None:
    guard = Guard(GuardValues(patience=3, rollbacks=2, rate_factor=0.5, window=8))
    kinds(guard, [1.0] * 8)
    verdicts = [guard.judge(BAD, 1.0).kind for _ in range(9)]
    assert verdicts == ["skip", "skip", "rollback"] * 2 + ["skip", "skip", "stop"]
    assert (guard.state.rollbacks, guard.state.rate_factor, guard.state.fresh) == (2, 0.25, 0)
    assert guard.judge(BAD, 1.0).kind == "stop"


def test_an_accepted_step_resets_the_count_of_faults() -> None:
    guard = Guard(GuardValues(patience=2))
    assert [guard.judge(BAD if n % 2 else (), 1.0).kind for n in range(10)] == ["accept", "skip"] * 5


def test_parameters_that_are_not_finite_cannot_be_skipped() -> None:
    guard = Guard(GuardValues(patience=5, rollbacks=1))
    broken = (NotFiniteFinding(where="parameters", what="model.norm.weight"),)
    assert [guard.judge(broken, 1.0).kind for _ in range(2)] == ["rollback", "stop"]


def test_an_overflow_is_no_fault_until_the_scale_is_one() -> None:
    guard = Guard(GuardValues(patience=2, rollbacks=0))
    verdicts = [guard.judge(GRADIENT, math.inf, scale=2.0**n) for n in range(16, 0, -1)]
    assert {verdict.kind for verdict in verdicts} == {"overflow"}
    assert verdicts[0].why == "the gradient overflowed at a loss scale of 65536"
    assert (guard.state.skipped, guard.state.overflowed, guard.state.in_a_row) == (16, 16, 0)
    assert [guard.judge(GRADIENT, math.inf, scale=1.0).kind for _ in range(2)] == ["skip", "stop"]


@pytest.mark.parametrize("findings", [BAD, BAD + GRADIENT])
def test_nonfinite_values_in_the_forward_are_a_fault_at_any_scale(findings: tuple[NotFiniteFinding, ...]) -> None:
    assert Guard(GuardValues()).judge(findings, math.inf, scale=65536.0).kind == "skip"


def test_after_a_rollback_some_steps_train_on_labels_only() -> None:
    guard = Guard(GuardValues(patience=1, ce_only_steps=2, window=8))
    terms = ActiveTerms(weights={"ce": 0.1, "forward_kl": 0.9}, temperature=2.0)
    assert guard.active_terms(terms) is terms
    guard.judge(BAD, 1.0)
    seen = []
    for _ in range(3):
        seen.append(dict(guard.active_terms(terms).weights))
        guard.judge((), 1.0)
    assert seen == [{"ce": 1.0}, {"ce": 1.0}, {"ce": 0.1, "forward_kl": 0.9}]
    # Norms with labels only differ from those of all terms.
    assert (guard.state.norms, guard.state.fresh) == ((1.0,) * 3, 1)


@pytest.mark.parametrize("cut", [0, 1, 20, 57])
def test_a_guard_restored_from_its_state_judges_the_same(cut: int) -> None:
    rng = random.Random(1)
    values = GuardValues(window=8, patience=2, rollbacks=4, ce_only_steps=3, sigma=2.0)
    steps = [(BAD if rng.random() < 0.2 else (), math.exp(rng.gauss(0, 1))) for _ in range(60)]
    whole, first = Guard(values), Guard(values)
    verdicts = [whole.judge(*step) for step in steps]
    for step in steps[:cut]:
        first.judge(*step)
    second = Guard(values, GuardState.model_validate_json(first.state.to_json()))
    assert [second.judge(*step) for step in steps[cut:]] == verdicts[cut:]
    assert second.state == whole.state


@pytest.mark.parametrize(
    ("findings", "norm", "hint"),
    [
        ((NotFiniteFinding(where="targets"),), 1.0, "kdpipe cache verify --level deep"),
        ((NotFiniteFinding(where="logits"),), 1.0, "try --precision bf16 or fp32"),
        ((NotFiniteFinding(where="ce"),), 1.0, "try a lower --lr"),
        ((), 9.0, "a larger guard.sigma, guard.median_factor or guard.skip_gradient_norm"),
    ],
)
def test_a_stop_reports_the_findings_and_what_to_try(
    findings: tuple[NotFiniteFinding, ...], norm: float, hint: str
) -> None:
    guard = Guard(GuardValues(patience=2, rollbacks=1, skip_gradient_norm=2.0))
    verdicts = [guard.judge(findings, norm) for _ in range(4)]
    error = guard.failure(1234, verdicts[-1])
    assert verdicts[-1].kind == "stop"
    assert error.exit_code == 1
    assert all(text in error.message for text in ("step 1,234", "2 bad steps", "1 rollbacks", "4 steps skipped"))
    assert verdicts[-1].why in error.message
    assert hint in str(error.hint)


def test_settings_override_presets() -> None:
    standard = resolve(GuardSettings(), OptimizerSettings())
    assert (standard.sigma, standard.window, standard.clip, standard.skip_gradient_norm) == (6.0, 128, 1.0, None)
    assert standard.median_factor == 200.0
    stable = resolve(GuardSettings(preset="ultra-stable"), OptimizerSettings())
    assert (stable.clip, stable.skip_gradient_norm, stable.lr_factor) == (0.5, 2.0, 0.25)
    assert resolve(GuardSettings(preset="fp16-safe"), OptimizerSettings()).lr_factor == 0.5
    given = GuardSettings(
        preset="ultra-stable", sigma=4.0, window=8, skip_gradient_norm=9.0, patience=7, rollbacks=9, rate_factor=0.9,
        ce_only_steps=3, snapshot_every=11, median_factor=7.0,
    )  # fmt: skip
    assert resolve(given, OptimizerSettings(clip=3.0)) == GuardValues(
        sigma=4.0, window=8, skip_gradient_norm=9.0, patience=7, rollbacks=9, rate_factor=0.9, clip=3.0,
        lr_factor=0.25, ce_only_steps=3, snapshot_every=11, median_factor=7.0,
    )  # fmt: skip


def test_ce_only_steps_without_rollbacks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"guard\.ce_only_steps .*guard\.rollbacks is 0"):
        resolve(GuardSettings(rollbacks=0, ce_only_steps=3), OptimizerSettings())
    assert resolve(GuardSettings(ce_only_steps=3), OptimizerSettings()).ce_only_steps == 3


def test_a_step_without_trained_positions_adds_no_norm() -> None:
    guard = Guard(GuardValues(window=8))
    for norm in (1.0, 0.0, 2.0):
        assert guard.judge((), norm).kind == "accept"
    assert guard.state.norms == (1.0, 2.0)
    assert guard.state.accepted == 3


def test_clamps_are_reported_with_their_distortion() -> None:
    assert clamp_warnings(GuardSettings(), 50_000) == []
    logits, loss = clamp_warnings(GuardSettings(clamp_logits=2.5, clamp_loss=10.0), 50_000)
    assert "no probability of 50,000 tokens can exceed 0.00296" in logits
    assert "guard.clamp_loss=10" in loss


@pytest.mark.parametrize(("clamp", "size"), [(2.5, 50_000), (5.0, 50_000), (5.0, 152_000), (0.1, 2)])
def test_the_largest_probability_is_that_of_a_softmax(clamp: float, size: int) -> None:
    exponentials = [math.exp(clamp)] + [math.exp(-clamp)] * (size - 1)
    assert largest_probability(clamp, size) == pytest.approx(exponentials[0] / math.fsum(exponentials))
