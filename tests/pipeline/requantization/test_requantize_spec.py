"""RequantizeSpec and never richer: what a cache can be made into, and what is refused with what would be richer."""

from typing import Any

import pytest

from kdpipe.pipeline.requantization.requantize_spec import requantized_manifest
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.reshape import RequantizeSpec
from kdpipe.schemas.targets import Sampled, Threshold, TopK, TopP
from support.kinds import kind_manifest


def poorer(name: str, **asked: Any) -> Any:
    return requantized_manifest(kind_manifest(name), RequantizeSpec(**asked))


def test_a_poorer_quantizer_keeps_all_else_as_it_was() -> None:
    source = kind_manifest("threshold-other-quantizers")
    made = requantized_manifest(source, RequantizeSpec(tau=0.5, temperatures=(4.0,), drop=("boundary",)))
    assert made.targets.keep == Threshold(tau=0.5, max_entries=12)
    assert (made.targets.temperatures, made.targets.boundary, made.targets.entropy) == ((4.0,), False, True)
    there = {column.name: column for column in source.arrays.row.columns}
    assert all(column == there[column.name] for column in made.arrays.row.columns)
    assert set(there) - {column.name for column in made.arrays.row.columns} == {"log_z@2.0", "boundary_logprob"}
    assert (made.arrays.logprob, made.arrays.id) == (source.arrays.logprob, source.arrays.id)
    assert (made.tables, made.seed) == (source.tables, source.seed)


def test_hidden_states_of_rows_and_values_of_draws_can_be_dropped() -> None:
    made = poorer("threshold", drop=("hidden", "entropy"), tau=0.1, seed=9)
    assert made.hidden.rows == ()
    assert made.arrays.hidden is None
    assert (made.hidden.pooled, made.seed) == (kind_manifest("threshold").hidden.pooled, 9)
    assert not poorer("threshold-at-2", drop=("draw-values",)).targets.draw_values


@pytest.mark.parametrize(
    ("asked", "keep"),
    [
        ({"tau": 0.1}, Threshold(tau=0.1)),
        ({"targets": "threshold"}, Threshold(tau=1 / 25)),
        ({"draws": 7}, Sampled(draws=7)),
        ({"targets": "topk"}, TopK(k=64)),
        ({"top_p": 0.5}, TopP(p=0.5)),
    ],
)
def test_states_become_any_kind(asked: dict[str, Any], keep: Any) -> None:
    made = poorer("state", **asked)
    assert made.targets.keep == keep
    assert made.arrays.state is None
    assert [table.name for table in made.tables] == ["ids_by_rank"]


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "tau": ("threshold", {"tau": 0.01}, "--tau 0.01 would be richer: the cache was made with 0.04"),
    "draws": ("sampled", {"draws": 9}, "--draws 9 would be richer: the cache was made with 8"),
    "k": ("topk", {"top_k": 7}, "--top-k 7 would be richer: the cache was made with 6"),
    "p": ("topp", {"top_p": 0.9}, "--top-p 0.9 would be richer: the cache was made with 0.8"),
    "temperature": ("threshold", {"temperatures": (3.0,)}, "--temperatures 3 would be richer: the cache has 2, 4"),
    "no temperatures": ("topp", {"temperatures": (2.0,)}, "--temperatures 2 would be richer: the cache has none"),
    "own temperature": (
        "threshold-at-2",
        {"temperatures": (4.0,)},
        "--temperatures leaves out 2, at which weights are read",
    ),
    "kind": (
        "threshold",
        {"targets": "topk"},
        "the cache keeps targets of kind threshold, --targets topk cannot be made of them",
    ),
    "other option": ("threshold", {"top_k": 4}, "--top-k is not for targets of kind threshold"),
    "imported": ("imported", {"top_k": 4}, "--top-k is not for targets of kind imported"),
    "two quantizers": ("state", {"tau": 0.1, "draws": 3}, "--draws is not for targets of kind threshold"),
    "nothing": ("threshold", {"tau": 0.04}, "nothing would be less: the new cache would be the old one"),
    "no hidden": ("sampled", {"drop": ("hidden",)}, "--drop hidden: the cache does not have it"),
    "seed": ("threshold", {"temperatures": (), "seed": 9}, "--seed 9 would change nothing: no id is drawn again"),
    "seed of none": ("topk", {"top_k": 2, "seed": 9}, "--seed 9 would change nothing: no id is drawn again"),
    "no boundary": ("sampled", {"drop": ("boundary",)}, "--drop boundary: the cache does not have it"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_richer_is_refused(case: str) -> None:
    name, asked, message = REFUSED[case]
    with pytest.raises(ConfigError) as refusal:
        poorer(name, **asked)
    assert refusal.value.message == message
    assert refusal.value.hint
