"""Contradictions among stage one's settings: a later layer overrules, one layer may not contradict itself."""

import re
from typing import Any

import pytest

from kdpipe.pipeline.config_file import read_value
from kdpipe.schemas.capture_rules import OF_KINDS, require, resolve
from kdpipe.schemas.capture_settings import CaptureSettings
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.settings import Assignment, build, from_file, from_flag, from_sets

PLACES = {
    "--targets": "targets.kind", "--profile": "targets.profile", "--tau": "targets.tau", "--top-k": "targets.top_k",
    "--top-p": "targets.top_p", "--draws": "targets.draws", "--temperatures": "targets.temperatures",
    "--target-temperature": "targets.target_temperature", "--hidden-layers": "hidden", "--hidden-dim": "hidden.dim",
    "--val-data": "data.val_path", "--val-fraction": "data.val_fraction",
}  # fmt: skip


def messages(file: dict[str, Any], **flags: Any) -> list[Assignment]:
    layers = from_file(CaptureSettings, file, "kd.yaml")
    for name, value in flags.items():
        flag = "--" + name.replace("_", "-")
        layers += from_flag(CaptureSettings, flag, PLACES[flag], value)
    return layers


def settings(file: dict[str, Any] | None = None, **flags: Any) -> CaptureSettings:
    return build(CaptureSettings, resolve(messages(file or {}, **flags)))


def refusal(file: dict[str, Any] | None = None, **flags: Any) -> tuple[str, str | None]:
    with pytest.raises(ConfigError) as refused:
        settings(file, **flags)
    return refused.value.message, refused.value.hint


@pytest.mark.parametrize(
    ("flags", "named", "hint"),
    [
        ({"targets": "topk", "tau": 0.1}, "--tau threshold topk --targets", "--targets threshold"),
        ({"top_k": 8}, "--top-k topk threshold default", "--targets topk"),
        ({"targets": "none", "temperatures": [2.0]}, "--temperatures sampled none --targets", "--targets threshold"),
        (
            {"targets": "none", "hidden_layers": {"layers": ["0.5"]}},
            "--hidden-layers threshold none --targets",
            "--targets threshold",
        ),
        ({"tau": 0.1, "profile": "fine"}, "--tau --profile", "one"),
        ({"val_data": "v", "val_fraction": 0.1}, "--val-data --val-fraction", "one"),
        ({"hidden_dim": 8}, "--hidden-dim --hidden-layers", "--hidden-layers 0.5,1.0"),
        (
            {"hidden_dim": 8, "hidden_layers": {"pooled": False, "layers": []}},
            "--hidden-dim --hidden-layers",
            "--hidden-layers 0.5,1.0",
        ),
    ],
    ids=str,
)
def test_contradictory_settings_are_refused_with_both_names(flags: dict[str, Any], named: str, hint: str) -> None:
    message, advice = refusal(**flags)
    assert message.startswith(named.split()[0]) and all(name in message for name in named.split())
    assert all(name in str(advice) for name in hint.split())


def test_a_file_may_not_contradict_itself_either() -> None:
    message, _ = refusal({"targets": {"kind": "topk", "draws": 3}})
    assert re.match(
        r"targets\.draws in the file kd\.yaml .*sampled.* topk \(targets\.kind in the file kd\.yaml\)", message
    )


def test_what_is_typed_contradicts_itself_in_flags_and_sets_alike() -> None:
    typed = from_sets(CaptureSettings, ["targets.tau=0.1"], read_value)
    with pytest.raises(ConfigError, match=r"^--set targets\.tau=0\.1 .*threshold.* topk \(--targets\)"):
        resolve([*typed, *from_flag(CaptureSettings, "--targets", "targets.kind", "topk")])
    with pytest.raises(ConfigError, match=r"^--set targets\.tau=0\.1 and --profile "):
        resolve([*typed, *from_flag(CaptureSettings, "--profile", "targets.profile", "lean")])


def test_a_flag_overrules_a_kind_with_all_that_belongs_to_it() -> None:
    file = {"targets": {"kind": "threshold", "tau": 0.3, "max_entries": 9, "temperatures": [3.0]}}
    found = settings(file, targets="topk", top_k=8).targets
    assert (found.kind, found.top_k, found.temperatures) == ("topk", 8, (3.0,))
    assert (found.tau, found.max_entries) == (None, None)


def test_a_flag_that_does_not_fit_the_kind_of_a_file_is_refused() -> None:
    message, _ = refusal({"targets": {"kind": "topk"}}, tau=0.1)
    assert re.match(r"--tau .*threshold.* topk \(targets\.kind in the file kd\.yaml\)", message)


def test_of_two_ways_to_say_one_thing_the_later_layer_is_right() -> None:
    assert settings({"targets": {"tau": 0.3}}, profile="fine").targets.tau is None
    found = settings({"targets": {"profile": "fine"}}, tau=0.3).targets
    assert (found.tau, found.profile) == (0.3, "standard")
    assert settings({"data": {"val_path": "v"}}, val_fraction=0.1).data.val_path is None
    assert settings({"data": {"val_fraction": 0.1}}, val_data="v").data.val_fraction == 0.02


def test_layers_that_are_turned_off_take_their_width_with_them() -> None:
    file = {"hidden": {"layers": ["0.5"], "dim": 8}}
    assert settings(file).hidden.dim == 8
    found = settings(file, hidden_layers={"pooled": False, "layers": []}).hidden
    assert (found.pooled, found.layers, found.dim) == (False, (), 64)


@pytest.mark.parametrize("kind", ["threshold", "sampled", "topk", "topp", "state", "none"])
def test_what_belongs_to_a_kind_is_accepted_with_it(kind: str) -> None:
    values = {
        "profile": "fine", "tau": 0.1, "top_k": 3, "top_p": 0.5, "draws": 3, "max_entries": 9, "draw_values": True,
        "target_temperature": 2.0, "temperatures": [2.0], "layers": ["1"],
        "dtype": "float16", "quantize": "int8", "devices": "cpu", "allow_foreign_tokenizer": True,
        "display_name": "Large", "license": "mit", "backend": "transformers",
    }  # fmt: skip
    for (group, name), kinds in OF_KINDS.items():
        file = {"targets": {"kind": kind}}
        file.setdefault(group, {})[name] = values[name]
        if kind in kinds:
            assert getattr(getattr(settings(file), group), name) is not None
        else:
            assert re.match(rf"{group}\.{name} in the file kd\.yaml .* not to {kind} ", refusal(file)[0])


def test_saying_that_there_is_nothing_contradicts_nothing() -> None:
    assert (
        settings(targets="none", temperatures=[], hidden_layers={"pooled": False, "layers": []}).targets.kind == "none"
    )
    assert settings({"targets": {"tau": None}}, targets="topk").targets.kind == "topk"


@pytest.mark.parametrize(
    ("file", "options"),
    [
        ({}, "--teacher NAME --data PATH --out DIR"),
        ({"targets": {"kind": "none"}}, "--tokenizer DIR --data PATH --out DIR"),
        ({"teacher": {"name": "t"}}, "--data PATH --out DIR"),
        ({"teacher": {"name": "t"}, "data": {"path": "d"}}, "--out DIR"),
        ({"teacher": {"tokenizer": "t"}, "data": {"path": "d"}, "out": "o"}, "--teacher NAME"),
    ],
    ids=str,
)
def test_all_missing_settings_are_named_at_once(file: dict[str, Any], options: str) -> None:
    with pytest.raises(ConfigError, match=r"^missing: ") as refused:
        require(settings(file))
    assert refused.value.hint == f"give {options}"


def test_a_plan_needs_less() -> None:
    require(settings({"teacher": {"name": "t"}}), data=False, out=False)
    tokens_only = {"teacher": {"tokenizer": "t"}, "targets": {"kind": "none"}, "data": {"path": "d"}, "out": "o"}
    require(settings(tokens_only))
