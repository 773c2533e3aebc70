"""The table of measured sizes is close to what the real writer makes of predictions of 2 to 3 nats."""

from pathlib import Path
from typing import Any

import pytest

from kdpipe.cache.inspect import inspect_cache
from kdpipe.pipeline.capture.size_table import VOCABULARIES, sizes_of, token_bytes
from kdpipe.schemas.member_tables import TARGET_KINDS
from kdpipe.schemas.target_kinds import Imported, Sampled, Threshold, TopK, TopP
from kdpipe.schemas.targets import RECORDS, TargetSpec
from support.synthetic import Recipe
from support.tiny import make_cache, manifest_of

WITHIN = 1.35
SMALL: dict[str, Any] = {
    "vocabulary_size": 2000, "documents": {"train": 40}, "documents_per_part": 40, "hidden": False, "temperatures": ()
}  # fmt: skip
HOT: dict[str, Any] = {"target_temperature": 2.0, "temperatures": (2.0,), "draw_values": True}


def test_every_kind_with_a_sampler_has_sizes() -> None:
    sizes = {name: kind.sizes for name, kind in RECORDS.items() if kind.sizes}
    assert set(sizes) == {name for name, row in TARGET_KINDS.items() if row.sampler}
    assert all(len(known.entries) == len(known.id_bytes) == len(VOCABULARIES) for known in sizes.values())


@pytest.mark.parametrize(
    "case",
    [
        {"kind": "threshold", "tau": 1 / 10},
        {"kind": "threshold", "tau": 1 / 50},
        {"kind": "threshold", "tau": 1 / 25, **HOT},
        {"kind": "sampled", "draws": 50},
        {"kind": "sampled", "draws": 20, **HOT},
        {"kind": "topk", "top_k": 12},
        {"kind": "topp", "top_p": 0.9, "max_entries": 512},
        {"kind": "none"},
    ],
    ids=lambda case: "-".join(str(value) for value in case.values()),
)
def test_an_estimate_is_within_a_third_of_a_cache(case: dict[str, Any], tmp_path: Path) -> None:
    recipe = Recipe(**(SMALL | case))
    make_cache(tmp_path / "cache", recipe)
    summary = inspect_cache(tmp_path / "cache")
    sizes, entries = sizes_of(manifest_of(recipe).targets, recipe.vocabulary_size)
    total = sum(sizes.values()) + token_bytes(recipe.vocabulary_size) * summary.rows / summary.positions
    made = summary.bytes_per_position["total"] - summary.bytes_per_position["overhead"]
    assert made / WITHIN < total < made * WITHIN
    if summary.entries_per_position is not None and entries is not None:
        assert summary.entries_per_position.mean / WITHIN < entries < summary.entries_per_position.mean * WITHIN


@pytest.mark.parametrize(
    ("less", "more"),
    [
        (Threshold(tau=0.1), Threshold(tau=0.02)),
        (Sampled(draws=5), Sampled(draws=50)),
        (TopK(k=4), TopK(k=9)),
        (TopP(p=0.5), TopP(p=1.0)),
        (Imported(source="x", max_entries=4), Imported(source="x", max_entries=5)),
    ],
    ids=lambda keep: keep.kind,
)
def test_a_richer_target_of_a_kind_takes_more(less: Any, more: Any) -> None:
    assert more.is_richer_than(less)
    assert not less.is_richer_than(more)
    assert not less.is_richer_than(less)
    if less.sizes:
        small, large = (sizes_of(TargetSpec(keep=keep), 50_000)[1] for keep in (less, more))
        assert small is not None and large is not None and small < large
