"""Loss weights, temperature and data order at each step, and contradictory settings."""

from typing import Any

import pytest

from kdpipe.pipeline.training.curriculum import Curriculum
from kdpipe.pipeline.training.schedules import make_plan
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.train_settings import TrainSettings


def curriculum(n_steps: int = 100, tail_weight: float = 1.0, **settings: Any) -> Curriculum:
    settings.setdefault("run", {})["max_steps"] = n_steps
    given = TrainSettings.model_validate(settings, strict=False)
    return Curriculum(given, make_plan(given, 10), tail_weight)


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
def test_weights_follow_mode_and_alpha_by_default(losses: Any, expected: dict[str, float]) -> None:
    built = curriculum(losses=losses)
    assert weights(built, 0) == weights(built, 99) == pytest.approx(expected)
    assert built.terms == expected.keys()


def test_wsd_alpha_starts_with_labels_only_is_constant_and_ends_with_the_decay() -> None:
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


def test_wsd_alpha_that_ends_at_zero_still_has_both_terms() -> None:
    built = curriculum(losses={"alpha_schedule": "wsd", "alpha": 0.0, "alpha_end": 0.0})
    assert built.terms == {"ce", "forward_kl"}
    assert weights(built, 50) == {"forward_kl": 1.0}


def test_a_phase_overrides_only_its_own_settings() -> None:
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


def test_a_phase_without_steps_is_ignored() -> None:
    phases = [{"until": 0.01, "weights": {"cosine": 1.0}, "temperature": 3.0, "order": "length"}, {"until": 1.0}]
    built = curriculum(10, run={"phases": phases})
    assert built.phase_at(0) == 1
    assert "cosine" not in built.terms
    assert built.temperatures == {1.0}
    assert built.orders == {"shuffled"}


def test_consecutive_phases_with_one_order_continue_it() -> None:
    phases = [
        {"until": 0.2, "order": "length"},
        {"until": 0.4},
        {"until": 0.6, "order": "shuffled"},
        {"until": 1.0, "order": "entropy"},
    ]
    built = curriculum(run={"phases": phases})
    assert [built.order_at(step) for step in (0, 19, 20, 45, 59, 60, 99)] == [
        ("length", 0), ("length", 0), ("shuffled", 20), ("shuffled", 20), ("shuffled", 20), ("entropy", 60),
        ("entropy", 60),
    ]  # fmt: skip
    assert built.orders == {"length", "shuffled", "entropy"}


def test_the_tail_weight_defaults_to_that_of_the_cache() -> None:
    assert curriculum(tail_weight=0.0).options.tail_weight == 0.0
    losses = {"tail_weight": 1.5, "skew": 0.2, "beta": 0.3, "weights": {"skew_kl": 1.0, "jsd": 1.0}}
    options = curriculum(losses=losses).options
    assert (options.tail_weight, options.skew, options.beta) == (1.5, 0.2, 0.3)


def test_alpha_in_a_phase_of_a_mode_without_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"alpha.*hybrid.*logit"):
        curriculum(losses={"mode": "logit"}, run={"phases": [{"until": 1.0, "alpha": 0.5}]})


@pytest.mark.parametrize("where", ["run", "phase"])
def test_a_weight_on_targets_is_refused_in_mode_output(where: str) -> None:
    losses = {"mode": "output", "weights": {"forward_kl": 0.5 if where == "run" else None}}
    phases = [{"until": 1.0, "weights": {"forward_kl": 0.5}}] if where == "phase" else []
    with pytest.raises(ConfigError, match=r"mode output.*forward_kl"):
        curriculum(losses=losses, run={"phases": phases})


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"losses": {"weights": {"ce": 0, "forward_kl": 0}}}, ""),
        ({"losses": {"mode": "output", "weights": {"ce": 0}}}, ""),
        (
            {"run": {"phases": [{"until": 0.5, "weights": {"ce": 0, "forward_kl": 0}}, {"until": 1.0}]}},
            "until 0.5",
        ),
    ],
    ids=str,
)
def test_a_run_without_any_weight_is_refused(settings: Any, where: str) -> None:
    with pytest.raises(ConfigError, match=f"weight.*{where}"):
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
def test_a_loss_with_constant_weights_and_temperature_is_recognized(settings: dict[str, Any], constant: bool) -> None:
    assert curriculum(**settings).is_constant is constant


@pytest.mark.parametrize(
    ("losses", "named"),
    [
        ({"skew": 0.2}, "losses.skew .*skew_kl"),
        ({"beta": 0.2, "logit": "skew_kl"}, "losses.beta .*jsd"),
    ],
)
def test_an_option_of_a_loss_without_weight_is_refused(losses: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        curriculum(losses=losses)


def test_an_option_of_a_loss_of_one_phase_is_accepted() -> None:
    phases = [{"until": 0.5, "weights": {"jsd": 1.0}}, {"until": 1.0}]
    assert curriculum(losses={"beta": 0.25}, run={"phases": phases}).options.beta == 0.25
    assert curriculum().options.beta == 0.5


def test_the_loss_of_each_phase_is_printed() -> None:
    def term_name(name: str, temperature: float) -> str:
        return name if temperature == 1 else f"{name}_coarse"

    assert curriculum().lines(term_name) == ["loss        0.1 x ce + 0.9 x forward_kl"]
    assert curriculum(losses={"mode": "output"}).lines(term_name) == ["loss        1 x ce"]
    wsd = {"alpha_schedule": "wsd", "alpha": 0.2}
    assert curriculum(losses=wsd, run={"order": "entropy"}).lines(term_name) == [
        "loss        0.2 x ce + 0.8 x forward_kl, data ordered by entropy, alpha from 1 to 0.2, then to 0.5"
    ]
    phases = [
        {"until": 0.001},
        {"until": 0.2, "alpha": 0.5, "order": "length"},
        {"until": 1.0, "weights": {"cosine": 0.3}, "temperature": 2.0},
    ]
    assert curriculum(losses={"mode": "hybrid"}, run={"phases": phases}).lines(term_name) == [
        "loss        until step 20: 0.5 x ce + 0.5 x forward_kl, data ordered by length",
        "            until step 100: 0.1 x ce_coarse + 0.9 x forward_kl_coarse + 0.3 x cosine_coarse, at temperature 2",
    ]
