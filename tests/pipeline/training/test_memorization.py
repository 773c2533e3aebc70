"""When samples are memorized: a rule in epochs and positions, and a warning before the first step."""

from typing import Any

import pytest

from kdpipe.pipeline.training.curriculum import Curriculum
from kdpipe.pipeline.training.memorization import epochs_before_memorization, warnings
from kdpipe.pipeline.training.schedules import make_plan
from kdpipe.schemas.target_kinds import Sampled, State, Threshold, TopK
from kdpipe.schemas.targets import TargetSpec
from kdpipe.schemas.train_settings import TrainSettings

STANDARD = TargetSpec(keep=Threshold(tau=1 / 25), temperatures=())
N_SEQUENCES, N_POSITIONS = 60, 15_000


def warned(spec: TargetSpec, epochs: float, n_positions: int = N_POSITIONS, **losses: Any) -> list[str]:
    settings = TrainSettings.model_validate({"run": {"epochs": epochs}, "losses": losses})
    plan = make_plan(settings, N_SEQUENCES)
    return list(warnings(plan, Curriculum(settings, plan, 1.0), spec, n_positions))


def test_many_epochs_over_few_samples_warn_with_a_number_that_does_not() -> None:
    most = epochs_before_memorization(N_POSITIONS)
    assert warned(STANDARD, most) == []
    (text,) = warned(STANDARD, most + 1)
    assert f"--epochs {most}" in text and f"{N_POSITIONS:,}" in text and "--profile fine" in text


def test_the_finest_profile_is_not_advised_to_users_of_it() -> None:
    (text,) = warned(TargetSpec(keep=Threshold(tau=1 / 50), temperatures=()), 100)
    assert "--profile" not in text


def test_more_positions_allow_more_epochs_and_few_allow_no_fewer() -> None:
    epochs = [epochs_before_memorization(n) for n in (1, 15_000, 150_000, 1_500_000, 15_000_000)]
    assert epochs == sorted(epochs) and epochs[0] == epochs[1] == 6 and epochs[3] > 3 * epochs[1]
    assert warned(STANDARD, 16) and not warned(STANDARD, 16, n_positions=1_500_000)


@pytest.mark.parametrize(
    ("spec", "losses"),
    [
        (TargetSpec(keep=State(width=32), temperatures=()), {}),
        (TargetSpec(keep=TopK(k=8), temperatures=()), {"tail_weight": 0}),
        (STANDARD, {"mode": "output"}),
        (STANDARD, {"tail_weight": 0}),
        (STANDARD, {"logit": "renormalized"}),
        (STANDARD, {"logit": "reverse_kl"}),
        (STANDARD, {"temperature": 2.0}),
    ],
)
def test_runs_without_samples_are_not_warned(spec: TargetSpec, losses: dict[str, Any]) -> None:
    assert warned(spec, 1000, **losses) == []


def test_samples_with_replacement_are_memorized_too() -> None:
    assert warned(TargetSpec(keep=Sampled(draws=50), temperatures=()), 1000)
