"""A run's length and rate: what is read, when the rate climbs, holds and falls, and how that is told."""

import math
from itertools import pairwise

import pytest

from kdpipe.pipeline.training.schedules import Plan, fallen, lines, make_plan, rate
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.stage_two import Evaluating, Run, Saving, Schedule, StageTwo


def plan_of(schedule: Schedule | None = None, run: Run | None = None, n: int = 100) -> Plan:
    return make_plan(StageTwo(schedule=schedule or Schedule(), run=run or Run()), n)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 100, 1023])
@pytest.mark.parametrize("epochs", [None, 0.25, 1.0, 1.5, 3.0])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_epochs_are_read_to_the_last_sequence(n: int, epochs: float | None, accumulate: int) -> None:
    plan = plan_of(run=Run(epochs=epochs, batch_size=8, accumulate=accumulate), n=n)
    sizes = [plan.size_of(step) for step in range(plan.n_steps)]
    assert sum(sizes) == plan.n_read == max(1, round((epochs or 1) * n))
    assert set(sizes[:-1]) <= {8 * accumulate}
    assert 0 < sizes[-1] <= 8 * accumulate


def test_max_steps_are_whole_steps_of_an_endless_line() -> None:
    plan = plan_of(run=Run(max_steps=1000, batch_size=8), n=3)
    assert plan.n_steps == 1000
    assert plan.size_of(999) == 8
    assert plan.epochs == pytest.approx(8000 / 3)


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="no sequence to learn from") as caught:
        plan_of(n=0)
    assert "cache inspect" in str(caught.value.hint)


def test_evaluation_and_saving_are_ten_a_run_unless_said() -> None:
    plan = plan_of(run=Run(max_steps=105))
    assert (plan.evaluate_every, plan.save_every) == (10, 10)
    said = StageTwo(run=Run(max_steps=105), evaluation=Evaluating(every=7), saving=Saving(every=500))
    plan = make_plan(said, 10)
    assert (plan.evaluate_every, plan.save_every) == (7, 500)
    assert plan_of(run=Run(max_steps=3)).save_every == 1


def twin(schedule: Schedule, n_steps: int, step: int) -> float:
    """The rate written out for each kind, from shares of the run."""
    up = round(schedule.warmup * n_steps)
    if step < up:
        return (step + 1) / up
    if schedule.kind == "constant":
        return 1.0
    begin = max(up, n_steps - round(schedule.decay * n_steps)) if schedule.kind == "wsd" else up
    x = min(max((step - begin) / (n_steps - begin), 0), 1) if n_steps > begin else 0.0
    y = 0.5 + 0.5 * math.cos(math.pi * x) if schedule.kind == "cosine" else 1 - x
    return schedule.floor + (1 - schedule.floor) * y


@pytest.mark.parametrize("kind", ["linear", "cosine", "wsd", "constant"])
@pytest.mark.parametrize(
    ("warmup", "decay", "floor"), [(0.1, 0.2, 0.0), (0.0, 1.0, 0.1), (0.5, 0.5, 1.0), (0.9, 0.1, 0)]
)
@pytest.mark.parametrize("n_steps", [1, 2, 10, 137])
def test_the_rate_is_that_of_its_kind(kind: str, warmup: float, decay: float, floor: float, n_steps: int) -> None:
    schedule = Schedule.model_validate({"kind": kind, "warmup": warmup, "decay": decay, "floor": floor})
    plan = plan_of(schedule, Run(max_steps=n_steps))
    for step in range(n_steps):
        assert rate(schedule, plan, step) == pytest.approx(twin(schedule, n_steps, step), abs=1e-12)
        assert 0 < rate(schedule, plan, step) <= 1


def test_the_rate_climbs_from_above_nothing_is_whole_and_falls_towards_the_floor() -> None:
    schedule = Schedule(kind="wsd", warmup=0.1, decay=0.2, floor=0.1)
    plan = plan_of(schedule, Run(max_steps=100))
    rates = [rate(schedule, plan, step) for step in range(100)]
    assert rates[0] == 0.1
    assert rates[9:81] == [1.0] * 72
    assert all(a > b for a, b in pairwise(rates[80:]))
    assert rates[-1] == pytest.approx(0.1 + 0.9 / 20)
    assert rate(schedule, plan, 100) == pytest.approx(0.1)
    assert [fallen(plan, step) for step in (0, 80, 90, 100)] == [0, 0, 0.5, 1]


def test_what_will_run_is_told() -> None:
    schedule = Schedule(kind="wsd", warmup=0.1, decay=0.2)
    settings = StageTwo(schedule=schedule, run=Run(epochs=3, batch_size=4, accumulate=2))
    told = lines(schedule, make_plan(settings, 1001))
    assert told == [
        "reads       3,003 sequences, 3 epochs of 1,001",
        "steps       376 optimizer steps, the last of 3: 4 sequences a batch x 2 batches = 8 a step",
        "rate        wsd: up over 38 steps, held for 263, down to 0 of its height over 75",
        "evaluates   every 37 steps and at the end",
        "saves       every 37 steps and at the end",
    ]
    flat = Schedule(kind="constant", warmup=0)
    assert lines(flat, plan_of(flat, Run(max_steps=10)))[2] == "rate        constant: no warm-up, held for 10"
    few = Schedule(kind="linear", warmup=0.1)
    assert lines(few, plan_of(few, Run(max_steps=9, batch_size=1), n=9)) == [
        "reads       9 sequences, 1 epoch of 9",
        "steps       9 optimizer steps: 1 sequence a batch x 1 batch = 1 a step",
        "rate        linear: up over 1 step, down to 0 of its height over 8",
        "evaluates   every step and at the end",
        "saves       every step and at the end",
    ]
