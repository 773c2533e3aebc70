"""Contradictions and gaps among stage two's settings."""

from typing import Any

import pytest

from kdpipe.pipeline.config_file import as_yaml, read_value
from kdpipe.schemas.capture_settings import CaptureSettings
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.settings import from_environment, from_file, from_sets, layered
from kdpipe.schemas.train_rules import meaningful, require, settled
from kdpipe.schemas.train_settings import TrainSettings

NAMED = ["cache.path=c", "student.name=tiny", "out=o"]


def settings(*sets: str, file: dict[str, Any] | None = None) -> TrainSettings:
    messages = from_file(TrainSettings, file or {}, "kd.yaml")
    found = layered(TrainSettings, settled([*messages, *from_sets(TrainSettings, sets, read_value)]))
    require(found)
    return found


def refusal(*sets: str, file: dict[str, Any] | None = None) -> tuple[str, str | None]:
    with pytest.raises(ConfigError) as refused:
        settings(*NAMED, *sets, file=file)
    return refused.value.message, refused.value.hint


@pytest.mark.parametrize(
    ("sets", "message", "hint"),
    [
        (
            ["losses.mode=output", "losses.alpha=0.5"],
            "--set losses.alpha=0.5 belongs to hybrid mode, and this is output, as --set losses.mode=output says",
            "leave it out, or give --mode hybrid",
        ),
        (
            ["losses.mode=output", "losses.temperature=2"],
            "--set losses.temperature=2 belongs to hybrid and logit mode, and this is output, as --set"
            " losses.mode=output says",
            "leave it out, or give --mode hybrid",
        ),
        (
            ["losses.alpha_end=0.3"],
            "--set losses.alpha_end=0.3 belongs to wsd schedule, and this is constant unless another kind is named",
            "leave it out, or give --set losses.alpha_schedule=wsd",
        ),
        (
            ["optimizer.kind=adamw", "optimizer.momentum=0.9"],
            "--set optimizer.momentum=0.9 belongs to muon optimizer, and this is adamw, "
            "as --set optimizer.kind=adamw says",
            "leave it out, or give --optimizer muon",
        ),
        (
            ["run.epochs=2", "run.max_steps=10"],
            "--set run.epochs=2 and --set run.max_steps=10 both say how long the student learns",
            "give one of them",
        ),
        (
            ["student.lora_rank=8"],
            "--set student.lora_rank=8 is for LoRA, which is off",
            "give --lora, or leave it out",
        ),
        (
            ["losses.hidden.router=true"],
            "losses.hidden.router mixes teacher layers for losses on states, and none of these has a weight",
            "give one, for instance --set losses.weights.cosine=0.1",
        ),
        (
            ["losses.hidden.pairs=1:2"],
            "losses.hidden.pairs names layers for losses on states, and none of these has a weight",
            "give one, for instance --set losses.weights.cosine=0.1",
        ),
        (
            ["losses.weights.cosine=0.1", "optimizer.rates.router=0.1"],
            "optimizer.rates.router is the learning rate of a router, and there is none",
            "give --set losses.hidden.router=true, or leave it out",
        ),
        (
            ["losses.weights.cka=0.1", "optimizer.rates.maps=0.1"],
            "optimizer.rates.maps is the rate of maps, which cosine, correlation, mse train, and none has a weight",
            "give one, for instance --set losses.weights.cosine=0.1",
        ),
        (
            ["losses.weights.cka=0.1", "run.batch_size=6"],
            "losses over groups of 4 sequences (losses.hidden.group) do not divide batches of 6",
            "choose a batch size that is a multiple of 4, or another group",
        ),
        (
            ["losses.weights.cka=0.1", "machine.portion=2"],
            "losses over groups of 4 sequences (losses.hidden.group) do not divide portions of 2",
            "choose a machine.portion that is a multiple of 4, or leave it out",
        ),
        (
            ["losses.weights.correlation=0.1", "losses.hidden.group=3"],
            "losses over groups of 3 sequences (losses.hidden.group) do not divide batches of 8",
            "choose a batch size that is a multiple of 3, or another group",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(sets: list[str], message: str, hint: str) -> None:
    assert refusal(*sets) == (message, hint)


def test_a_later_source_overrides_a_file_of_another_mode() -> None:
    file = {"losses": {"alpha": 0.5, "temperature": 2.0}, "run": {"epochs": 3.0}}
    found = settings(*NAMED, "losses.mode=output", "run.max_steps=5", file=file)
    assert (found.losses.alpha, found.losses.temperature) == (0.1, 1.0)
    assert (found.run.epochs, found.run.max_steps) == (None, 5)


@pytest.mark.parametrize(
    ("missing", "message"),
    [(0, "nothing says which cache to learn from"), (1, "nothing says who learns"), (2, "nothing says where the run")],
)
def test_settings_without_a_default_have_to_be_given(missing: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(*(messages for number, messages in enumerate(NAMED) if number != missing))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({"run": {"phases": [{"until": 0.5}]}}, "last phase"),
        ({"run": {"phases": [{"until": 1.0}, {"until": 0.5}]}}, "each phase"),
        ({"schedule": {"kind": "wsd", "warmup": 0.6, "decay": 0.5}}, "warmup + decay"),
        ({"losses": {"hidden": {"pairs": ["x:3"]}}}, "STUDENT:TEACHER"),
        ({"machine": {"device": "gpu"}}, "a device is auto, cpu, or one GPU"),
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
    found = layered(TrainSettings, from_environment(TrainSettings, environment, read_value, others=both))
    assert (found.losses.alpha, found.seed) == (0.3, 7)
    first = layered(CaptureSettings, from_environment(CaptureSettings, environment, read_value, others=both))
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
    assert settings(file=read_value(as_yaml(meaningful(reported)))) == reported


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
            "run.phases in the file kd.yaml: item 1, weights.ce must be greater than or equal to 0, not -1",
        ),
        ([{"until": 2}], "run.phases in the file kd.yaml: item 1, until must be less than or equal to 1, not 2"),
        ([{"alpha": 0.5}], "run.phases in the file kd.yaml: item 1, until: field required"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_wrong_within_a_phase_is_named(phases: list[Any], message: str) -> None:
    assert refusal(file={"run": {"phases": phases}})[0] == message
