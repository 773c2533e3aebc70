"""The manifest of a requantized cache, and refusals of settings that need more than its source has."""

from typing import Any

import pytest

from kdpipe.pipeline.requantization.requantize_spec import requantized_manifest
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.reshape import RequantizeSpec
from kdpipe.schemas.target_kinds import Sampled, Threshold, TopK, TopP
from support.kinds import kind_manifest


def reduced(name: str, **settings: Any) -> Any:
    return requantized_manifest(kind_manifest(name), RequantizeSpec(**settings))


def test_less_of_the_targets_leaves_all_else_unchanged() -> None:
    source = kind_manifest("threshold-other-quantizers")
    made = requantized_manifest(source, RequantizeSpec(tau=0.5, temperatures=(4.0,), drop=("boundary",)))
    assert made.targets.keep == Threshold(tau=0.5, max_entries=12)
    assert (made.targets.temperatures, made.targets.boundary, made.targets.entropy) == ((4.0,), False, True)
    known = {column.name: column for column in source.arrays.row.columns}
    assert all(column == known[column.name] for column in made.arrays.row.columns)
    assert set(known) - {column.name for column in made.arrays.row.columns} == {"log_z@2.0", "boundary_logprob"}
    assert (made.arrays.logprob, made.arrays.id) == (source.arrays.logprob, source.arrays.id)
    assert (made.tables, made.seed) == (source.tables, source.seed)


def test_hidden_states_of_rows_and_values_of_draws_can_be_dropped() -> None:
    made = reduced("threshold", drop=("hidden", "entropy"), tau=0.1, seed=9)
    assert made.hidden.rows == ()
    assert made.arrays.hidden is None
    assert (made.hidden.pooled, made.seed) == (kind_manifest("threshold").hidden.pooled, 9)
    assert not reduced("threshold-at-2", drop=("draw-values",)).targets.draw_values


@pytest.mark.parametrize(
    ("settings", "keep"),
    [
        ({"tau": 0.1}, Threshold(tau=0.1)),
        ({"targets": "threshold"}, Threshold(tau=1 / 25)),
        ({"draws": 7}, Sampled(draws=7)),
        ({"targets": "topk"}, TopK(k=64)),
        ({"top_p": 0.5}, TopP(p=0.5)),
    ],
)
def test_states_become_any_kind(settings: dict[str, Any], keep: Any) -> None:
    made = reduced("state", **settings)
    assert made.targets.keep == keep
    assert made.arrays.state is None
    assert [table.name for table in made.tables] == ["ids_by_rank"]


# Source, settings, and the values that the message names.
REFUSED: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "tau": ("threshold", {"tau": 0.01}, ("--tau 0.01", "0.04")),
    "draws": ("sampled", {"draws": 9}, ("--draws 9", "8")),
    "k": ("topk", {"top_k": 7}, ("--top-k 7", "6")),
    "p": ("topp", {"top_p": 0.9}, ("--top-p 0.9", "0.8")),
    "temperature": ("threshold", {"temperatures": (3.0,)}, ("--temperatures 3", "2, 4")),
    "no temperatures": ("topp", {"temperatures": (2.0,)}, ("--temperatures 2", "none")),
    "own temperature": (
        "threshold-at-2",
        {"temperatures": (4.0,)},
        ("--temperatures", "include 2"),
    ),
    "kind": (
        "threshold",
        {"targets": "topk"},
        ("--targets topk", "kind threshold"),
    ),
    "other option": ("threshold", {"top_k": 4}, ("--top-k", "kind threshold")),
    "imported": ("imported", {"top_k": 4}, ("--top-k", "kind imported")),
    "two quantizers": ("state", {"tau": 0.1, "draws": 3}, ("--draws", "kind threshold")),
    "nothing": ("threshold", {"tau": 0.04}, ("identical",)),
    "no hidden": ("sampled", {"drop": ("hidden",)}, ("--drop hidden",)),
    "seed": ("threshold", {"temperatures": (), "seed": 9}, ("--seed 9",)),
    "seed of none": ("topk", {"top_k": 2, "seed": 9}, ("--seed 9",)),
    "no boundary": ("sampled", {"drop": ("boundary",)}, ("--drop boundary",)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_need_more_than_the_source_has_are_refused(case: str) -> None:
    name, settings, values = REFUSED[case]
    with pytest.raises(ConfigError) as refusal:
        reduced(name, **settings)
    assert all(value in refusal.value.message for value in values)
    assert refusal.value.hint
