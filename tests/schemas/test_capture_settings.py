"""Settings of stage one: bounds that are enforced, layers as people write them, shards counted from 0."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from kdpipe.schemas.capture_settings import CaptureOptions, CaptureSettings, HiddenSettings
from kdpipe.schemas.records import Record


def read(kind: type[Record], value: Any) -> Any:
    return kind.model_validate_json(json.dumps(value))


def test_no_setting_is_required() -> None:
    settings = CaptureSettings()
    assert settings.targets.kind == "threshold"
    assert settings.data.val_fraction == 0.02


def test_a_layer_may_be_written_as_a_number() -> None:
    hidden = read(HiddenSettings, {"layers": [0.5, 1.0, 12, "0.25"]})
    assert hidden.layers == ("0.5", "1.0", "12", "0.25")


@pytest.mark.parametrize("layer", [1.5, -1, "last", True, None, "0x1"])
def test_what_is_neither_a_number_nor_a_fraction_is_no_layer(layer: Any) -> None:
    with pytest.raises(ValidationError):
        read(HiddenSettings, {"layers": [layer]})


@pytest.mark.parametrize("temperatures", [[1.0], [2.0, 2.0], [0], [-1], [1001]])
def test_a_temperature_list_that_means_nothing_is_refused(temperatures: list[float]) -> None:
    with pytest.raises(ValidationError):
        read(CaptureSettings, {"targets": {"temperatures": temperatures}})


@pytest.mark.parametrize(
    "value",
    [
        {"data": {"val_fraction": 1.0}},
        {"data": {"limit": 0}},
        {"sequences": {"length": 1}},
        {"targets": {"tau": 0.0}},
        {"targets": {"tau": 1.01}},
        {"targets": {"top_k": 4097}},
        {"targets": {"draws": 4096}},
        {"hidden": {"dim": 65537}},
        {"machine": {"devices": "gpu"}},
        {"seed": -1},
    ],
    ids=json.dumps,
)
def test_every_bound_binds(value: Any) -> None:
    with pytest.raises(ValidationError):
        read(CaptureSettings, value)


def test_shards_are_counted_from_0() -> None:
    assert CaptureOptions(shard=3, n_shards=4).shard == 3
    with pytest.raises(ValidationError, match=r"last.*4.*3"):
        CaptureOptions(shard=4, n_shards=4)
