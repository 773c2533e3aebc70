"""Settings by layer: precedence, and errors for wrong values."""

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from kdpipe.pipeline.config_file import read_value
from kdpipe.schemas.capture_settings import CaptureSettings
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.peer_names import PEER_NAMES
from kdpipe.schemas.settings import build, by_dotted_name, from_environment, from_file, from_flag, from_sets
from kdpipe.schemas.train_settings import TrainSettings


def layered(
    file: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    sets: Sequence[str] = (),
    flags: Mapping[str, tuple[str, Any]] | None = None,
) -> CaptureSettings:
    """Stage one's settings, from these layers; flags by name, each with its place and value."""
    layers = from_file(CaptureSettings, file or {}, "kd.yaml")
    layers += from_environment(CaptureSettings, environment or {}, read_value)
    layers += from_sets(CaptureSettings, sets, read_value)
    for flag, (place, value) in (flags or {}).items():
        layers += from_flag(CaptureSettings, flag, place, value)
    return build(CaptureSettings, layers)


def refusal(**layers: Any) -> str:
    """The two lines that a person reads."""
    with pytest.raises(ConfigError) as refused:
        layered(**layers)
    assert refused.value.exit_code == 2
    return f"{refused.value.message}\n{refused.value.hint or ''}".rstrip()


LAYERS: list[tuple[str, Any, int]] = [
    ("file", {"seed": 1}, 1),
    ("environment", {"KDPIPE_SEED": "2"}, 2),
    ("sets", ["seed=3"], 3),
    ("flags", {"--seed": ("seed", 4)}, 4),
]


@pytest.mark.parametrize("present", [chosen for n in range(5) for chosen in combinations(LAYERS, n)], ids=len)
def test_the_later_layer_has_the_last_word(present: Sequence[tuple[str, Any, int]]) -> None:
    settings = layered(**{name: value for name, value, _ in present})
    assert settings.seed == (present[-1][2] if present else CaptureSettings().seed)


def test_layers_that_speak_of_different_settings_add_up() -> None:
    settings = layered(
        file={"data": {"path": "a.jsonl", "columns": {"text": "body"}}, "targets": {"draws": 7}},
        environment={"KDPIPE_DATA__VAL_FRACTION": "0.1", "HOME": "/root", "kdpipe_seed": "x"},
        sets=["data.columns.prompt=question", "data.columns={response: answer}"],
        flags={"--data": ("data.path", "b.jsonl")},
    )
    assert (settings.data.path, settings.data.val_fraction, settings.targets.draws) == ("b.jsonl", 0.1, 7)
    columns = settings.data.columns
    assert (columns.text, columns.prompt, columns.response) == ("body", "question", "answer")


def test_of_two_sets_for_one_setting_the_second_counts() -> None:
    assert layered(sets=["seed=1", "seed=2"]).seed == 2


def test_a_group_may_be_given_whole_or_left_empty() -> None:
    settings = layered(file={"targets": None, "data": {}}, environment={"KDPIPE_DATA": "{limit: 3, path: x}"})
    assert (settings.data.limit, settings.data.path) == (3, "x")


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1.0), ("0.5", 0.5), ("1e-3", 0.001), (".25", 0.25), ("+1.", 1.0), ("5E-1", 0.5)],
)
def test_a_number_is_read_however_it_is_written(text: str, value: float) -> None:
    assert layered(sets=[f"targets.tau={text}"]).targets.tau == value
    assert layered(environment={"KDPIPE_TARGETS__TAU": text}).targets.tau == value


def test_a_whole_number_may_be_written_as_a_float_and_a_float_as_a_whole_number() -> None:
    settings = layered(file={"data": {"limit": 1e6}, "targets": {"tau": 1, "temperatures": [2, 3.5]}})
    assert (settings.data.limit, settings.targets.tau, settings.targets.temperatures) == (1_000_000, 1.0, (2.0, 3.5))


@pytest.mark.parametrize(
    ("text", "value"),
    [("no", False), ("No", False), ("off", False), ("false", False), ("yes", True), ("ON", True), ("True", True)],
)
def test_a_boolean_may_be_a_word(text: str, value: bool) -> None:
    assert layered(sets=[f"sequences.pack={text}"]).sequences.pack is value
    assert layered(file={"sequences": {"pack": text}}).sequences.pack is value


@pytest.mark.parametrize(
    "text", ["no", "007", "1e5", "*.jsonl", "a: b", "[x].txt", "2024-01-01", "a #b", "a=b", "'q'", " x", "true"]
)
def test_a_name_is_used_verbatim(text: str) -> None:
    assert layered(sets=[f"data.path={text}"]).data.path == text
    assert layered(environment={"KDPIPE_TEACHER__REVISION": text}).teacher.revision == text


@pytest.mark.parametrize("text", ["", "~", "null"])
def test_a_setting_that_may_be_absent_can_be_unset(text: str) -> None:
    settings = layered(file={"data": {"path": "a", "limit": 3}}, sets=[f"data.path={text}", f"data.limit={text}"])
    assert (settings.data.path, settings.data.limit) == (None, None)


@pytest.mark.parametrize("text", ["[2, 3]", "2,3", "[2.0,3.0]"])
def test_a_list_needs_no_brackets(text: str) -> None:
    assert layered(environment={"KDPIPE_TARGETS__TEMPERATURES": text}).targets.temperatures == (2.0, 3.0)


def test_a_list_of_one_and_an_empty_list_are_lists() -> None:
    settings = layered(sets=["targets.temperatures=3", "hidden.layers=0.5,1.0,7", "data.columns.keep=[]"])
    assert settings.targets.temperatures == (3.0,)
    assert settings.hidden.layers == ("0.5", "1.0", "7")
    assert settings.data.columns.keep == ()


@pytest.mark.parametrize(
    ("layers", "named"),
    [
        (
            {"sets": ["targets.tau=x"]},
            ("--set targets.tau=x", "a number", "not 'x'"),
        ),
        (
            {"file": {"targets": {"tau": "x"}}},
            ("targets.tau in the file kd.yaml", "a number", "not 'x'"),
        ),
        (
            {"environment": {"KDPIPE_TARGETS__TAU": "x"}},
            ("KDPIPE_TARGETS__TAU", "a number", "not 'x'"),
        ),
        (
            {"flags": {"--tau": ("targets.tau", 7.0)}},
            ("--tau", "1", "not 7.0"),
        ),
        (
            {"file": {"targets": {"temperatures": [2, 0]}}},
            ("targets.temperatures in the file kd.yaml", "item 2", "0.001", "not 0"),
        ),
        (
            {"sets": ["targets.temperatures=2,2"]},
            ("--set targets.temperatures=2,2", "1", "log_z", "0"),
        ),
        ({"sets": ["seed"]}, ("--set seed", "--set NAME=VALUE")),
        (
            {"sets": ["sequences.pack={"]},
            ("--set sequences.pack={", "'{'", "'<stream end>'"),
        ),
        ({"sets": ["seed=1.5"]}, ("--set seed=1.5", "a whole number", "not 1.5")),
        (
            {"file": {"seed": True}},
            ("seed in the file kd.yaml", "a whole number", "not true"),
        ),
        (
            {"file": {"teacher": {"revision": 1234567}}},
            ("teacher.revision in the file kd.yaml", "text", "not 1234567", "quotes"),
        ),
        (
            {"file": {"targets": {"tau": "x"}}, "sets": ["seed=1"]},
            ("targets.tau in the file kd.yaml", "a number", "not 'x'"),
        ),
        (
            {"sets": ["machine={devices: gpu}"]},
            ("machine.devices in --set machine={devices: gpu}", "0", "cuda:0,cuda:1", "not 'gpu'"),
        ),
        (
            {"sets": ["hidden.layers=0.5,last"]},
            ("--set hidden.layers=0.5,last", "item 2", "a number", "0.0", "1.0", "not 'last'"),
        ),
        (
            {"flags": {"--data": ("data.path", "\udcff.jsonl")}},
            ("--data", "'\\udcff.jsonl'", "UTF-8", "text"),
        ),
        (
            {"flags": {"--tau": ("targets.tau", float("nan"))}},
            ("--tau", "a number", "not NaN"),
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_value_is_reported_with_its_source(layers: dict[str, Any], named: tuple[str, ...]) -> None:
    reported = refusal(**layers)
    assert reported.startswith(named[0]) and not [value for value in named if value not in reported]


@pytest.mark.parametrize(
    ("layers", "named"),
    [
        (
            {"file": {"targets": {"taus": 1}}},
            ("targets.taus in the file kd.yaml", "'targets.taus'", "'targets.tau'"),
        ),
        ({"file": {"tau": 1}}, ("tau in the file kd.yaml", "'tau'", "'targets.tau'")),
        (
            {"sets": ["data.val_fracton=0"]},
            ("--set data.val_fracton=0", "'data.val_fracton'", "'data.val_fraction'"),
        ),
        (
            {"environment": {"KDPIPE_DATA__VAL_FRACTON": "0"}},
            ("'KDPIPE_DATA__VAL_FRACTON'", "'KDPIPE_DATA__VAL_FRACTION'"),
        ),
        (
            {"environment": {"KDPIPE_DATA_LIMIT": "0"}},
            ("'KDPIPE_DATA_LIMIT'", "'KDPIPE_DATA__LIMIT'"),
        ),
        (
            {"environment": {"KDPIPE_DTA__LIMIT": "0"}},
            ("KDPIPE_DTA__LIMIT", "'KDPIPE_DTA'", "'KDPIPE_DATA'"),
        ),
        ({"sets": ["zzzz=1"]}, ("--set zzzz=1", "'zzzz'")),
        ({"sets": ["seed.x=1"]}, ("--set seed.x=1", "'seed'")),
        ({"sets": ["=1"]}, ("--set =1", "''")),
        ({"environment": {"KDPIPE_": "0"}}, ("'KDPIPE_'",)),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_unknown_name_is_refused_with_the_nearest(layers: dict[str, Any], named: tuple[str, ...]) -> None:
    reported = refusal(**layers).splitlines()[0]
    assert not [value for value in named if value not in reported]


@pytest.mark.parametrize(
    ("sets", "here"),
    [
        ("learning_rate=1e-3", "optimizer.lr"),
        ("run.eval_steps=10", "evaluation.every"),
        ("kd_top_k=8", "targets.top_k"),
        ("optimizer.max_grad_norm=1", "optimizer.clip"),
        ("losses.weights.attention=1", "not available"),
    ],
)
def test_names_of_other_tools_are_answered_with_the_name_here(sets: str, here: str) -> None:
    with pytest.raises(ConfigError, match=rf"'.*{here}"):
        from_sets(TrainSettings, [sets], read_value)


def test_every_name_here_in_the_table_of_other_tools_exists() -> None:
    known = {*by_dotted_name(TrainSettings().model_dump()), *by_dotted_name(CaptureSettings().model_dump())}
    groups = {name.rpartition(".")[0] for name in known}
    for other, here in PEER_NAMES.items():
        names = re.findall(r"\b(?!metrics)[a-z_]+(?:\.[a-z_]+)+", here)
        assert names or here.startswith(("not ", "--", "out")), other
        assert all(name in known | groups for name in names), (other, names)


def test_the_docs_list_every_name_of_other_tools() -> None:
    page = (Path(__file__).parents[2] / "docs" / "coming-from.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert rows == [f"| `{other}` | {here} |" for other, here in PEER_NAMES.items()]


@pytest.mark.parametrize(
    ("sets", "choice"), [("guard.preset=ultra_stable", "ultra-stable"), ("report_to=wanbd", "wandb")]
)
def test_a_misspelled_choice_is_corrected(sets: str, choice: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build(TrainSettings, from_sets(TrainSettings, [sets], read_value))
    assert refused.value.hint == f"did you mean {choice}?"
    assert "nput should" not in refused.value.message


def test_allowed_names_are_listed_beside_an_unknown_one() -> None:
    reported = refusal(sets=["sequences.lenth=1"])
    assert "length, pack, part_rows" in reported.splitlines()[1]


def test_a_group_is_not_a_value() -> None:
    reported = refusal(file={"sequences": 512})
    assert reported.startswith("sequences in the file kd.yaml") and "512" in reported
    assert "length, pack, part_rows" in reported.splitlines()[1]


def test_a_message_stays_short() -> None:
    assert len(refusal(sets=[f"seed={'9' * 5000}x"])) < 300
    assert len(refusal(environment={f"KDPIPE_{'X' * 5000}": "1"}).splitlines()[0]) < 300


@pytest.mark.parametrize(("text", "value"), [("2", 2), ("2.0", 2), ("auto", "auto")])
def test_a_setting_may_be_a_number_or_a_word(text: str, value: object) -> None:
    given = from_sets(TrainSettings, [f"machine.threads={text}"], read_value)
    assert build(TrainSettings, given).machine.threads == value


@pytest.mark.parametrize("text", ["x", "0", "1.5", "true"])
def test_what_is_neither_the_number_nor_the_word_is_refused(text: str) -> None:
    given = from_sets(TrainSettings, [f"machine.threads={text}"], read_value)
    with pytest.raises(ConfigError, match=rf"machine\.threads={text} must be .* or auto, not "):
        build(TrainSettings, given)


def test_resolved_settings_read_back_as_they_are() -> None:
    settings = layered(sets=["hidden.layers=0.5,3", "targets.tau=0.1", "data.path=é*.jsonl"])
    assert (
        build(CaptureSettings, from_file(CaptureSettings, settings.model_dump(mode="json"), "resolved.json"))
        == settings
    )
