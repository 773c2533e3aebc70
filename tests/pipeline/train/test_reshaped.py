"""Students learn from caches that were made from others: equal steps from adopted parts, and steps from all."""

from pathlib import Path

import pytest

from kdpipe.cache.opening import open_cache
from kdpipe.cache.reshape.merge import merge
from kdpipe.cache.reshape.subset import subset
from kdpipe.pipeline.requantize import requantize
from kdpipe.schemas.reshape import Bounds, DocumentSelection, RequantizeSpec
from support.corpora import write_jsonl
from support.stage_two import losses, make_cache, run, settings_for


@pytest.fixture(scope="module")
def due(folder: Path) -> list[tuple[int, float]]:
    """The losses of a student of the source."""
    run(settings_for(folder, "run-of-cache"))
    return losses(folder / "run-of-cache")


@pytest.mark.slow
def test_losses_from_adopted_parts_equal_those_of_their_sources_to_the_bit(
    folder: Path, due: list[tuple[int, float]]
) -> None:
    report = subset(str(folder / "cache"), str(folder / "adopted"), DocumentSelection(parts=Bounds(first=0)))
    assert report.rewritten == 0
    assert report.cache_id != open_cache(folder / "cache").cache_id
    run(settings_for(folder, "run-of-adopted", "adopted"))
    assert losses(folder / "run-of-adopted") == due


@pytest.mark.slow
def test_losses_from_rows_in_other_ranks_differ_only_by_the_order_of_sums(
    folder: Path, due: list[tuple[int, float]]
) -> None:
    """Merged behind another cache the rows are written in its ranks; a subset has them alone again."""
    write_jsonl(
        folder / "others.jsonl", [{"text": f"Nothing of this, {i} times.", "category": "odd"} for i in range(9)]
    )
    data = {"path": str(folder / "others.jsonl"), "val_fraction": 0.0}
    other = make_cache(folder, "other-cache", data=data)
    merged = merge([str(other), str(folder / "cache")], str(folder / "merged"))
    assert merged.rewritten == len(open_cache(folder / "cache").parts)
    subset(str(folder / "merged"), str(folder / "moved"), DocumentSelection(parts=Bounds(first=1)))
    run(settings_for(folder, "run-of-moved", "moved"))
    here = losses(folder / "run-of-moved")
    assert [step for step, _ in here] == [step for step, _ in due]
    assert [loss for _, loss in here] == pytest.approx([loss for _, loss in due], rel=1e-5)


@pytest.mark.slow
def test_a_student_trains_on_fewer_ids(folder: Path, due: list[tuple[int, float]]) -> None:
    requantize(str(folder / "cache"), str(folder / "lean"), RequantizeSpec(tau=0.2))
    run(settings_for(folder, "run-of-lean", "lean"))
    here = losses(folder / "run-of-lean")
    assert [step for step, _ in here] == [step for step, _ in due]
    assert [loss for _, loss in here] == pytest.approx([loss for _, loss in due], abs=0.5)
