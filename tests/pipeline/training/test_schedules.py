"""The length of a run, its learning rate schedule, and the lines that describe both."""

import math
from itertools import pairwise

import pytest

from kdpipe.pipeline.training.schedules import StepPlan, decay_progress, lines, lr_factor, make_plan
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.train_settings import (
    CheckpointSettings,
    EvaluationSettings,
    RunSettings,
    ScheduleSettings,
    TrainSettings,
)


def plan_of(schedule: ScheduleSettings | None = None, run: RunSettings | None = None, n: int = 100) -> StepPlan:
    return make_plan(TrainSettings(schedule=schedule or ScheduleSettings(), run=run or RunSettings()), n)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 100, 1023])
@pytest.mark.parametrize("epochs", [None, 0.25, 1.0, 1.5, 3.0])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_epochs_use_every_sequence(n: int, epochs: float | None, accumulate: int) -> None:
    plan = plan_of(run=RunSettings(epochs=epochs, batch_size=8, accumulate=accumulate), n=n)
    sizes = [plan.size_of(step) for step in range(plan.n_steps)]
    assert sum(sizes) == plan.n_read == max(1, round((epochs or 1) * n))
    assert set(sizes[:-1]) <= {8 * accumulate}
    assert 0 < sizes[-1] <= 8 * accumulate


def test_max_steps_are_full_steps() -> None:
    plan = plan_of(run=RunSettings(max_steps=1000, batch_size=8), n=3)
    assert plan.n_steps == 1000
    assert plan.size_of(999) == 8
    assert plan.epochs == pytest.approx(8000 / 3)


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="no training sequences") as raised:
        plan_of(n=0)
    assert "cache inspect" in str(raised.value.hint)


def test_a_run_has_ten_evaluations_and_checkpoints_by_default() -> None:
    plan = plan_of(run=RunSettings(max_steps=105))
    assert (plan.evaluate_every, plan.save_every) == (10, 10)
    given = TrainSettings(
        run=RunSettings(max_steps=105), evaluation=EvaluationSettings(every=7), saving=CheckpointSettings(every=500)
    )
    plan = make_plan(given, 10)
    assert (plan.evaluate_every, plan.save_every) == (7, 500)
    assert plan_of(run=RunSettings(max_steps=3)).save_every == 1


def test_warmup_from_one_on_is_a_number_of_steps() -> None:
    plan = plan_of(run=RunSettings(max_steps=100), schedule=ScheduleSettings(warmup=15))
    assert plan.n_warmup == 15


@pytest.mark.parametrize(("kind", "warmup"), [("cosine", 10), ("constant", 11), ("wsd", 9)])
def test_more_warmup_steps_than_the_run_has_are_refused(kind: str, warmup: int) -> None:
    schedule = ScheduleSettings.model_validate({"kind": kind, "warmup": warmup})
    with pytest.raises(ConfigError, match=f"schedule.warmup is {warmup} steps"):
        plan_of(run=RunSettings(max_steps=10), schedule=schedule)


def twin(schedule: ScheduleSettings, n_steps: int) -> list[float]:
    """The factors of all steps, written out: up to the peak, held there, and down to the floor at the last step."""
    n_up = round(schedule.warmup * n_steps)
    n_up = n_up if schedule.kind == "constant" else min(n_up, n_steps - 1)
    up = [(step + 1) / n_up for step in range(n_up)]
    n_rest = n_steps - len(up)
    n_fall = {"constant": 0, "wsd": min(n_rest, max(1, round(schedule.decay * n_steps)))}.get(schedule.kind, n_rest)
    n_fall = min(n_fall, n_steps - 1)
    down = [(n + 1) / n_fall for n in range(n_fall)]
    left = [0.5 + 0.5 * math.cos(math.pi * x) if schedule.kind == "cosine" else 1 - x for x in down]
    held = [1.0] * (n_rest - n_fall)
    return [*up, *held, *(schedule.floor + (1 - schedule.floor) * y for y in left)]


@pytest.mark.parametrize("kind", ["linear", "cosine", "wsd", "constant"])
@pytest.mark.parametrize(
    ("warmup", "decay", "floor"), [(0.1, 0.2, 0.0), (0.0, 1.0, 0.1), (0.5, 0.5, 1.0), (0.9, 0.1, 0), (0, 0.01, 0.5)]
)
@pytest.mark.parametrize("n_steps", [1, 2, 10, 137])
def test_the_learning_rate_follows_its_schedule(
    kind: str, warmup: float, decay: float, floor: float, n_steps: int
) -> None:
    schedule = ScheduleSettings.model_validate({"kind": kind, "warmup": warmup, "decay": decay, "floor": floor})
    plan = plan_of(schedule, RunSettings(max_steps=n_steps))
    rates = [lr_factor(schedule, plan, step) for step in range(n_steps)]
    assert rates == pytest.approx(twin(schedule, n_steps), abs=1e-12)
    assert all(0 < factor <= 1 for factor in rates[:-1])
    assert (plan.decay_from < n_steps) == (kind != "constant" and n_steps > 1)
    # The printed plan agrees with the schedule.
    if plan.decay_from < n_steps:
        assert rates[-1] == pytest.approx(floor, abs=1e-12)
        assert f"decay to {floor:g} of the peak over {n_steps - plan.decay_from}" in lines(schedule, plan)[2]
    else:
        assert rates[-1] == 1 and "decay" not in lines(schedule, plan)[2]


@pytest.mark.parametrize("floor", [0.0, 0.1])
@pytest.mark.parametrize(
    ("schedule", "n_steps", "expected"),
    [
        ({"kind": "wsd", "warmup": 0.0, "decay": 0.1}, 10, [1.0] * 9 + [0.0]),  # a fall of one step
        ({"kind": "wsd", "warmup": 0.2, "decay": 0.4}, 5, [1.0, 1.0, 1.0, 0.5, 0.0]),
        ({"kind": "wsd", "warmup": 0.0, "decay": 0.01}, 4, [1.0] * 3 + [0.0]),  # a share that rounds to no step
        ({"kind": "wsd", "warmup": 0.9, "decay": 0.1}, 2, [1.0, 0.0]),  # a warm-up that rounds to all
        ({"kind": "linear", "warmup": 0.9}, 2, [1.0, 0.0]),
        ({"kind": "linear", "warmup": 0.0}, 5, [1.0, 0.75, 0.5, 0.25, 0.0]),
        ({"kind": "linear", "warmup": 0.2}, 5, [1.0, 0.75, 0.5, 0.25, 0.0]),
        ({"kind": "cosine", "warmup": 0.0}, 3, [1.0, 0.5, 0.0]),
        ({"kind": "linear", "warmup": 0.5}, 2, [1.0, 0.0]),
        ({"kind": "linear", "warmup": 0.0}, 1, [1.0]),  # the only step is at the peak
        ({"kind": "cosine", "warmup": 0.0}, 1, [1.0]),
    ],
)
def test_the_decay_ends_at_the_last_step(
    schedule: dict[str, float | str], n_steps: int, expected: list[float], floor: float
) -> None:
    given = ScheduleSettings.model_validate(schedule | {"floor": floor})
    plan = plan_of(given, RunSettings(max_steps=n_steps))
    rates = [lr_factor(given, plan, step) for step in range(n_steps)]
    assert rates == pytest.approx([floor + (1 - floor) * factor for factor in expected], abs=1e-12)


def test_the_learning_rate_rises_from_above_zero_to_its_peak_and_decays_to_the_floor() -> None:
    schedule = ScheduleSettings(kind="wsd", warmup=0.1, decay=0.2, floor=0.1)
    plan = plan_of(schedule, RunSettings(max_steps=100))
    rates = [lr_factor(schedule, plan, step) for step in range(100)]
    assert rates[0] == 0.1
    assert rates[9:80] == [1.0] * 71
    assert all(a > b for a, b in pairwise(rates[79:]))
    assert rates[-2] == pytest.approx(0.1 + 0.9 / 20)
    assert rates[-1] == pytest.approx(0.1)
    assert [decay_progress(plan, step) for step in (0, 79, 80, 89, 99, 100)] == [0, 0, 0.05, 0.5, 1, 1]


def test_the_plan_is_printed() -> None:
    schedule = ScheduleSettings(kind="wsd", warmup=0.1, decay=0.2)
    settings = TrainSettings(schedule=schedule, run=RunSettings(epochs=3, batch_size=4, accumulate=2))
    assert lines(schedule, make_plan(settings, 1001)) == [
        "data        3,003 sequences, 3 epochs of 1,001",
        "steps       376 optimizer steps, the last with 3: 4 per batch x 2 batches = 8 sequences per step",
        "schedule    wsd: warm-up 38 of 376 steps (10%), constant for 263, decay to 0 of the peak over 75",
        "evaluation  every 37 steps and at the end",
        "checkpoints every 37 steps, at step 301 before the decay, and at the end",
    ]
    flat = ScheduleSettings(kind="constant", warmup=0)
    assert (
        lines(flat, plan_of(flat, RunSettings(max_steps=10)))[2] == "schedule    constant: no warm-up, constant for 10"
    )
    few = ScheduleSettings(kind="linear", warmup=0.1)
    assert lines(few, plan_of(few, RunSettings(max_steps=9, batch_size=1), n=9)) == [
        "data        9 sequences, 1 epoch of 9",
        "steps       9 optimizer steps: 1 per batch x 1 batch = 1 sequence per step",
        "schedule    linear: warm-up 1 of 9 steps (11%), decay to 0 of the peak over 8",
        "evaluation  every step and at the end",
        "checkpoints every step and at the end",
    ]
