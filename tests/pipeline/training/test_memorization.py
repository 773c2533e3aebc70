"""When sampled draws are memorized: a rule in epochs and positions, for runs that read draws, said before step one."""

from typing import Any

import pytest

from kdpipe.pipeline.training.curriculum import Curriculum
from kdpipe.pipeline.training.memorization import bearable_epochs, warnings
from kdpipe.pipeline.training.schedules import make_plan
from kdpipe.schemas.targets import Sampled, State, TargetSpec, Threshold, TopK
from kdpipe.schemas.train_settings import TrainSettings

STANDARD = TargetSpec(keep=Threshold(tau=1 / 25), temperatures=())
N_SEQUENCES, N_POSITIONS = 60, 15_000


def warned(spec: TargetSpec, epochs: float, n_positions: int = N_POSITIONS, **losses: Any) -> list[str]:
    settings = TrainSettings.model_validate({"run": {"epochs": epochs}, "losses": losses})
    plan = make_plan(settings, N_SEQUENCES)
    return list(warnings(plan, Curriculum(settings, plan, 1.0), spec, n_positions))


def test_many_epochs_over_few_draws_are_warned_of_with_epochs_that_are_not() -> None:
    most = bearable_epochs(N_POSITIONS)
    assert warned(STANDARD, most) == []
    (text,) = warned(STANDARD, most + 1)
    assert f"--epochs {most}" in text and f"{N_POSITIONS:,}" in text and "--profile fine" in text


def test_the_finest_profile_is_not_told_to_use_it() -> None:
    (text,) = warned(TargetSpec(keep=Threshold(tau=1 / 50), temperatures=()), 100)
    assert "--profile" not in text


def test_more_positions_bear_more_epochs_and_few_bear_no_fewer() -> None:
    bearable = [bearable_epochs(n) for n in (1, 15_000, 150_000, 1_500_000, 15_000_000)]
    assert bearable == sorted(bearable) and bearable[0] == bearable[1] == 6 and bearable[3] > 3 * bearable[1]
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
def test_runs_that_read_no_draws_are_not_warned(spec: TargetSpec, losses: dict[str, Any]) -> None:
    assert warned(spec, 1000, **losses) == []


def test_draws_with_replacement_are_memorized_too() -> None:
    assert warned(TargetSpec(keep=Sampled(draws=50), temperatures=()), 1000)
