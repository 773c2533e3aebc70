"""What counts at each step: layers of weights, alpha's course, phases, orders, and what contradicts itself."""

from typing import Any

import pytest

from kdpipe.pipeline.training.curriculum import Curriculum
from kdpipe.pipeline.training.schedules import make_plan
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.train_settings import TrainSettings


def curriculum(n_steps: int = 100, tail_weight: float = 1.0, **settings: Any) -> Curriculum:
    settings.setdefault("run", {})["max_steps"] = n_steps
    said = TrainSettings.model_validate(settings, strict=False)
    return Curriculum(said, make_plan(said, 10), tail_weight)


def weights(built: Curriculum, step: int) -> dict[str, float]:
    return {str(name): weight for name, weight in built.at(step).weights.items()}


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({}, {"ce": 0.1, "forward_kl": 0.9}),
        ({"mode": "output"}, {"ce": 1.0}),
        ({"mode": "logit", "logit": "jsd"}, {"jsd": 1.0}),
        ({"mode": "logit", "weights": {"ce": 0.2}}, {"forward_kl": 1.0, "ce": 0.2}),
        ({"alpha": 0.0}, {"forward_kl": 1.0}),
        ({"alpha": 1.0}, {"ce": 1.0}),
        ({"alpha": 0.25, "weights": {"ce": 2.0, "cosine": 0.5, "mse": 0.0}},
         {"ce": 2.0, "forward_kl": 0.75, "cosine": 0.5}),
        ({"mode": "output", "weights": {"cka": 0.5}}, {"ce": 1.0, "cka": 0.5}),
    ],
)  # fmt: skip
def test_weights_follow_mode_and_alpha_where_nothing_else_is_said(losses: Any, expected: dict[str, float]) -> None:
    built = curriculum(losses=losses)
    assert weights(built, 0) == weights(built, 99) == pytest.approx(expected)
    assert built.terms == expected.keys()


def test_wsd_alpha_starts_with_labels_alone_holds_and_ends_as_the_rate_has_fallen() -> None:
    losses = {"alpha_schedule": "wsd", "alpha": 0.1, "alpha_end": 0.5}
    built = curriculum(1000, losses=losses, schedule={"kind": "wsd", "warmup": 0.1, "decay": 0.2})
    alpha = [built.at(step).weights.get("ce", 0.0) for step in range(1000)]
    assert built.at(0).weights == {"ce": 1.0}
    assert alpha[10] == pytest.approx(0.55)
    assert alpha[20:800] == pytest.approx([0.1] * 780)
    assert alpha[899] == pytest.approx(0.3)
    assert alpha[999] == pytest.approx(0.5)
    assert all(sum(built.at(step).weights.values()) == pytest.approx(1) for step in range(1000))
    assert built.terms == {"ce", "forward_kl"}


def test_wsd_alpha_that_ends_in_pure_distilling_still_has_both_terms() -> None:
    built = curriculum(losses={"alpha_schedule": "wsd", "alpha": 0.0, "alpha_end": 0.0})
    assert built.terms == {"ce", "forward_kl"}
    assert weights(built, 50) == {"forward_kl": 1.0}


def test_a_phase_overlays_the_run_and_leaves_the_rest() -> None:
    phases = [
        {"until": 0.1, "weights": {"cosine": 1.0, "forward_kl": 0.0}, "temperature": 2.0},
        {"until": 0.5, "alpha": 0.5},
        {"until": 1.0, "weights": {"ce": 0.0}},
    ]
    built = curriculum(losses={"weights": {"ce": 0.3}, "temperature": 4.0}, run={"phases": phases})
    assert weights(built, 9) == {"ce": 0.3, "cosine": 1.0}
    assert weights(built, 10) == weights(built, 49) == {"ce": 0.5, "forward_kl": 0.5}
    assert weights(built, 50) == weights(built, 1000) == {"forward_kl": 0.9}
    assert [built.at(step).temperature for step in (9, 10, 99)] == [2.0, 4.0, 4.0]
    assert [built.phase_at(step) for step in (0, 9, 10, 49, 50, 99, 100)] == [0, 0, 1, 1, 2, 2, 2]
    assert built.terms == {"ce", "cosine", "forward_kl"}
    assert built.temperatures == {2.0, 4.0}


def test_a_phase_without_a_step_is_passed_over() -> None:
    phases = [{"until": 0.01, "weights": {"cosine": 1.0}, "temperature": 3.0, "order": "length"}, {"until": 1.0}]
    built = curriculum(10, run={"phases": phases})
    assert built.phase_at(0) == 1
    assert "cosine" not in built.terms
    assert built.temperatures == {1.0}
    assert built.orders == {"shuffled"}


def test_neighboring_phases_of_one_order_are_one_line() -> None:
    phases = [
        {"until": 0.2, "order": "length"},
        {"until": 0.4},
        {"until": 0.6, "order": "shuffled"},
        {"until": 1.0, "order": "entropy"},
    ]
    built = curriculum(run={"phases": phases})
    found = [built.order_at(step) for step in (0, 19, 20, 45, 59, 60, 99)]
    assert found == [
        ("length", 0), ("length", 0), ("shuffled", 20), ("shuffled", 20), ("shuffled", 20), ("entropy", 60),
        ("entropy", 60),
    ]  # fmt: skip
    assert built.orders == {"length", "shuffled", "entropy"}


def test_the_tail_weight_defaults_to_that_of_the_cache() -> None:
    assert curriculum(tail_weight=0.0).at(0).options.tail_weight == 0.0
    losses = {"tail_weight": 1.5, "skew": 0.2, "beta": 0.3, "weights": {"skew_kl": 1.0, "jsd": 1.0}}
    options = curriculum(losses=losses).at(5).options
    assert (options.tail_weight, options.skew, options.beta) == (1.5, 0.2, 0.3)


def test_alpha_in_a_phase_of_a_mode_without_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="a phase gives alpha, which belongs to hybrid modes, and this one is logit"):
        curriculum(losses={"mode": "logit"}, run={"phases": [{"until": 1.0, "alpha": 0.5}]})


@pytest.mark.parametrize("where", ["run", "phase"])
def test_a_weight_on_targets_is_refused_in_mode_output(where: str) -> None:
    losses = {"mode": "output", "weights": {"forward_kl": 0.5 if where == "run" else None}}
    phases = [{"until": 1.0, "weights": {"forward_kl": 0.5}}] if where == "phase" else []
    with pytest.raises(ConfigError, match="mode output learns from labels alone, and forward_kl has a weight"):
        curriculum(losses=losses, run={"phases": phases})


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"losses": {"weights": {"ce": 0, "forward_kl": 0}}}, "has a weight: nothing"),
        ({"losses": {"mode": "output", "weights": {"ce": 0}}}, "has a weight: nothing"),
        (
            {"run": {"phases": [{"until": 0.5, "weights": {"ce": 0, "forward_kl": 0}}, {"until": 1.0}]}},
            "has a weight in the phase until 0.5: nothing",
        ),
    ],
    ids=str,
)
def test_a_run_in_which_nothing_counts_is_refused(settings: Any, where: str) -> None:
    with pytest.raises(ConfigError, match=f"no term {where} would be learnt"):
        curriculum(**settings)


@pytest.mark.parametrize(
    ("settings", "constant"),
    [
        ({}, True),
        ({"losses": {"mode": "output"}}, True),
        ({"losses": {"alpha_schedule": "wsd"}}, False),
        ({"losses": {"alpha_schedule": "wsd", "alpha": 1.0, "alpha_end": 1.0}}, True),
        ({"run": {"phases": [{"until": 0.5, "order": "entropy"}, {"until": 1.0}]}}, True),
        ({"run": {"phases": [{"until": 0.5, "temperature": 2.0}, {"until": 1.0}]}}, False),
        ({"run": {"phases": [{"until": 0.5, "alpha": 0.5}, {"until": 1.0}]}}, False),
        ({"run": {"phases": [{"until": 0.001, "alpha": 0.5}, {"until": 1.0}]}}, True),
    ],
)
def test_a_loss_that_means_the_same_at_every_step_is_known(settings: dict[str, Any], constant: bool) -> None:
    assert curriculum(**settings).is_constant is constant


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ({"skew": 0.2}, "losses.skew is a number of skew_kl, which has no weight at any step"),
        ({"beta": 0.2, "logit": "skew_kl"}, "losses.beta is a number of jsd"),
    ],
)
def test_a_number_of_a_loss_that_is_not_there_is_refused(losses: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        curriculum(losses=losses)


def test_a_number_of_a_loss_in_one_phase_is_taken() -> None:
    phases = [{"until": 0.5, "weights": {"jsd": 1.0}}, {"until": 1.0}]
    assert curriculum(losses={"beta": 0.25}, run={"phases": phases}).at(0).options.beta == 0.25
    assert curriculum().at(0).options.beta == 0.5


def test_what_is_minimized_when_is_told() -> None:
    def called(name: str, temperature: float) -> str:
        return name if temperature == 1 else f"{name}_coarse"

    assert curriculum().lines(called) == ["minimizes   0.1 x ce + 0.9 x forward_kl"]
    assert curriculum(losses={"mode": "output"}).lines(called) == ["minimizes   1 x ce"]
    wsd = {"alpha_schedule": "wsd", "alpha": 0.2}
    assert curriculum(losses=wsd, run={"order": "entropy"}).lines(called) == [
        "minimizes   0.2 x ce + 0.8 x forward_kl, by entropy, alpha from 1 to 0.2, in the end to 0.5"
    ]
    phases = [
        {"until": 0.001},
        {"until": 0.2, "alpha": 0.5, "order": "length"},
        {"until": 1.0, "weights": {"cosine": 0.3}, "temperature": 2.0},
    ]
    assert curriculum(losses={"mode": "hybrid"}, run={"phases": phases}).lines(called) == [
        "minimizes   until step 20: 0.5 x ce + 0.5 x forward_kl, by length",
        "            until step 100: 0.1 x ce_coarse + 0.9 x forward_kl_coarse + 0.3 x cosine_coarse, at temperature 2",
    ]
