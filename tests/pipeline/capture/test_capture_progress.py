"""Progress: rates, shares, and a time left that is right while the teacher keeps its speed."""

from pathlib import Path

import pytest

from kdpipe.pipeline.capture.capture_progress import ProgressFollower
from kdpipe.pipeline.capture.part_capture import CaptureTally
from kdpipe.pipeline.capture.part_queue import WorkerShard
from kdpipe.schemas.cache_plan import PlannedPart
from support.stage_one import HeardWatch
from support.tiny import SMALL, begin_cache, part_of, write_part

ROWS = 1000.0


class EvenCorpus:
    """Every part has as many rows."""

    def expected_rows(self, part: PlannedPart, sequence_length: int) -> float:
        """The same."""
        return ROWS


def heard_after(path: Path, tally: CaptureTally, shard: WorkerShard) -> tuple[HeardWatch, ProgressFollower]:
    watch = HeardWatch()
    follower = ProgressFollower(begin_cache(path), EvenCorpus(), shard, watch)  # type: ignore[arg-type]  # as much as it asks for
    follower.update(tally)
    return watch, follower


@pytest.mark.parametrize(("count", "parts"), [(1, 4), (2, 2)])
def test_time_left_is_that_of_ones_own_share(tmp_path: Path, count: int, parts: int) -> None:
    tally = CaptureTally(started=0.0, stopped=10.0, rows=500, positions=400, waiting_seconds=9.0)
    watch, _ = heard_after(tmp_path / "cache", tally, WorkerShard(index=0, count=count))
    assert watch.shares == [0.9]
    assert watch.left == [pytest.approx((parts * ROWS - 500) / 50)]


def test_nothing_is_left_when_more_was_done_than_planned(tmp_path: Path) -> None:
    tally = CaptureTally(started=0.0, stopped=10.0, rows=9000, positions=9000)
    watch, _ = heard_after(tmp_path / "cache", tally, WorkerShard())
    assert watch.left == [0.0]


def test_before_the_first_answer_nothing_is_known(tmp_path: Path) -> None:
    watch, _ = heard_after(tmp_path / "cache", CaptureTally(started=0.0, stopped=1.0), WorkerShard())
    assert watch.left == [None]


def test_parts_are_reported_when_they_are_committed(tmp_path: Path) -> None:
    watch, follower = heard_after(tmp_path / "cache", CaptureTally(started=0.0, stopped=1.0), WorkerShard())
    write_part(begin_cache(tmp_path / "cache"), 2)
    follower.committed(2)
    assert watch.parts == []
    follower.update(CaptureTally(started=0.0, stopped=1.0))
    assert watch.parts == [2]
    positions = sum(int(sequence.loss_mask.sum()) for sequence, _ in part_of(SMALL, 2))
    assert watch.positions == [positions]
