"""Contradictions and gaps among stage two's settings."""

from typing import Any

import pytest

from kdpipe.pipeline.config_file import as_yaml, read_value
from kdpipe.schemas.capture_settings import CaptureSettings
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.settings import build, from_environment, from_file, from_sets
from kdpipe.schemas.train_rules import applicable, require, resolve
from kdpipe.schemas.train_settings import TrainSettings

NAMED = ["cache.path=c", "student.name=tiny", "out=o"]


def settings(*sets: str, file: dict[str, Any] | None = None) -> TrainSettings:
    messages = from_file(TrainSettings, file or {}, "kd.yaml")
    found = build(TrainSettings, resolve([*messages, *from_sets(TrainSettings, sets, read_value)]))
    require(found)
    return found


def refusal(*sets: str, file: dict[str, Any] | None = None) -> tuple[str, str | None]:
    with pytest.raises(ConfigError) as refused:
        settings(*NAMED, *sets, file=file)
    return refused.value.message, refused.value.hint


@pytest.mark.parametrize(
    ("sets", "named", "hint"),
    [
        ("losses.mode=output losses.alpha=0.5", "hybrid output", "--mode hybrid"),
        ("losses.mode=output losses.temperature=2", "hybrid logit output", "--mode hybrid"),
        ("losses.alpha_end=0.3", "wsd constant default", "--set losses.alpha_schedule=wsd"),
        ("optimizer.kind=adamw optimizer.momentum=0.9", "muon adamw", "--optimizer muon"),
        ("run.epochs=2 run.max_steps=10", "", "one"),
        ("student.lora_rank=8", "LoRA", "--lora"),
        ("losses.hidden.router=true", "hidden", "losses.weights.cosine=0.1"),
        ("losses.hidden.pairs=1:2", "hidden", "losses.weights.cosine=0.1"),
        ("losses.weights.cosine=0.1 optimizer.rates.router=0.1", "router", "losses.hidden.router=true"),
        ("losses.weights.cka=0.1 optimizer.rates.maps=0.1", "cosine correlation mse", "losses.weights.cosine=0.1"),
        ("losses.weights.cka=0.1 run.batch_size=6", "6 losses.hidden.group 4", "4"),
        ("losses.weights.cka=0.1 machine.portion=2", "2 losses.hidden.group 4", "4"),
        ("losses.weights.correlation=0.1 losses.hidden.group=3", "batch 8 3", "3"),
    ],
)
def test_contradictory_settings_are_refused_with_their_names(sets: str, named: str, hint: str) -> None:
    message, advice = refusal(*sets.split())
    last = sets.split()[-1].partition("=")[0]
    assert last in message or named.split()[-1] in message
    assert all(name in message for name in named.split()), message
    assert hint in str(advice)


def test_a_later_source_overrides_a_file_of_another_mode() -> None:
    file = {"losses": {"alpha": 0.5, "temperature": 2.0}, "run": {"epochs": 3.0}}
    found = settings(*NAMED, "losses.mode=output", "run.max_steps=5", file=file)
    assert (found.losses.alpha, found.losses.temperature) == (0.1, 1.0)
    assert (found.run.epochs, found.run.max_steps) == (None, 5)


@pytest.mark.parametrize(("missing", "option"), [(0, "--from-cache DIR"), (1, "--student NAME"), (2, "--out DIR")])
def test_settings_without_a_default_have_to_be_given(missing: int, option: str) -> None:
    with pytest.raises(ConfigError, match=r"^missing: ") as refused:
        settings(*(value for number, value in enumerate(NAMED) if number != missing))
    assert refused.value.hint == f"give {option}"


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({"run": {"phases": [{"until": 0.5}]}}, "last phase"),
        ({"run": {"phases": [{"until": 1.0}, {"until": 0.5}]}}, "each phase"),
        ({"schedule": {"kind": "wsd", "warmup": 0.6, "decay": 0.5}}, "warmup + decay"),
        ({"losses": {"hidden": {"pairs": ["x:3"]}}}, "STUDENT:TEACHER"),
        ({"machine": {"device": "gpu"}}, "expected auto, cpu, cuda, mps, all"),
        ({"report_to": ["wandb", "wandb"]}, "duplicate tracker in report_to"),
        (
            {"losses": {"select": [{"term": "ce", "by": "teacher_entropy", "keep": "lowest", "share": 0.2}] * 2}},
            "one selection per term",
        ),
    ],
)
def test_values_that_cannot_be_are_refused(file: dict[str, Any], message: str) -> None:
    assert message in refusal(file=file)[0]


def test_variables_of_the_other_stage_are_passed_over() -> None:
    both = (CaptureSettings, TrainSettings)
    environment = {"KDPIPE_TARGETS__TAU": "0.1", "KDPIPE_LOSSES__ALPHA": "0.3", "KDPIPE_SEED": "7"}
    found = build(TrainSettings, from_environment(TrainSettings, environment, read_value, others=both))
    assert (found.losses.alpha, found.seed) == (0.3, 7)
    first = build(CaptureSettings, from_environment(CaptureSettings, environment, read_value, others=both))
    assert (first.targets.tau, first.seed) == (0.1, 7)
    with pytest.raises(ConfigError, match="unknown setting 'KDPIPE_LOSES'"):
        from_environment(TrainSettings, {"KDPIPE_LOSES": "1"}, read_value, others=both)


@pytest.mark.parametrize(
    "sets",
    [
        [],
        ["losses.mode=output"],
        ["losses.mode=logit", "losses.logit=jsd", "losses.temperature=2"],
        ["losses.alpha_schedule=wsd", "losses.alpha_end=0.3", "schedule.kind=wsd", "schedule.decay=0.1"],
        ["optimizer.kind=muon", "optimizer.momentum=0.9", "run.max_steps=7"],
        ["student.lora=true", "student.lora_rank=8", "run.epochs=2"],
    ],
    ids=str,
)
def test_settings_that_are_written_down_are_the_same_when_read(sets: list[str]) -> None:
    reported = settings(*NAMED, *sets)
    assert settings(file=read_value(as_yaml(applicable(reported)))) == reported


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        (
            [{"until": 1.0, "wieghts": {"ce": 1}}],
            "run.phases in the file kd.yaml: item 1: unknown setting 'wieghts': the nearest is 'weights'",
        ),
        (
            [{"until": 0.5}, {"until": 1.0, "weights": {"cosin": 1}}],
            "run.phases in the file kd.yaml: item 2, weights: unknown setting 'cosin': the nearest is 'cosine'",
        ),
        (
            [{"until": 0.5, "weights": {"ce": -1}}, {"until": 1.0}],
            "run.phases in the file kd.yaml: item 1, weights.ce must be at least 0, not -1",
        ),
        ([{"until": 2}], "run.phases in the file kd.yaml: item 1, until must be at most 1, not 2"),
        ([{"alpha": 0.5}], "run.phases in the file kd.yaml: item 1, until: field required"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_wrong_within_a_phase_is_named(phases: list[Any], message: str) -> None:
    assert refusal(file={"run": {"phases": phases}})[0] == message
