"""Progress: rates, shares, and a time left that is right while the teacher keeps its speed."""

from pathlib import Path

import pytest

from kdpipe.pipeline.capture.capture_progress import ProgressFollower
from kdpipe.pipeline.capture.part_capture import CaptureTally
from kdpipe.pipeline.capture.part_queue import WorkerShard
from kdpipe.schemas.cache_plan import PlannedPart
from support.stage_one import RecordingProgress
from support.tiny import begin_cache, write_part

ROWS = 1000.0


class EvenCorpus:
    """Every part has as many rows."""

    def expected_rows(self, part: PlannedPart, sequence_length: int) -> float:
        """The same."""
        return ROWS


def heard_after(path: Path, tally: CaptureTally, shard: WorkerShard) -> tuple[RecordingProgress, ProgressFollower]:
    progress = RecordingProgress()
    follower = ProgressFollower(begin_cache(path), EvenCorpus(), shard, progress)  # type: ignore[arg-type]  # as much as it asks for
    follower.update(tally)
    return progress, follower


@pytest.mark.parametrize(("count", "parts"), [(1, 4), (2, 2)])
def test_time_left_is_that_of_ones_own_share(tmp_path: Path, count: int, parts: int) -> None:
    tally = CaptureTally(started=0.0, stopped=10.0, rows=500, positions=400, waiting_seconds=9.0)
    progress, _ = heard_after(tmp_path / "cache", tally, WorkerShard(index=0, count=count))
    (update,) = progress.updates["cache-teacher"]
    assert (update.done, update.facts["teacher"]) == (400, 0.9)
    assert update.seconds_left == pytest.approx((parts * ROWS - 500) / 50)


def test_nothing_is_left_when_more_was_done_than_planned(tmp_path: Path) -> None:
    tally = CaptureTally(started=0.0, stopped=10.0, rows=9000, positions=9000)
    progress, _ = heard_after(tmp_path / "cache", tally, WorkerShard())
    assert [update.seconds_left for update in progress.updates["cache-teacher"]] == [0.0]


def test_before_the_first_answer_nothing_is_known(tmp_path: Path) -> None:
    progress, _ = heard_after(tmp_path / "cache", CaptureTally(started=0.0, stopped=1.0), WorkerShard())
    assert [update.seconds_left for update in progress.updates["cache-teacher"]] == [None]


def test_parts_are_reported_when_they_are_committed(tmp_path: Path) -> None:
    progress, follower = heard_after(tmp_path / "cache", CaptureTally(started=0.0, stopped=1.0), WorkerShard())
    cache = begin_cache(tmp_path / "cache")
    write_part(cache, 2)
    follower.committed(2)
    follower.update(CaptureTally(started=0.0, stopped=1.0))
    before, after = progress.updates["cache-teacher"]
    assert (before.facts["parts"], before.facts["written"]) == (0, 0)
    assert (after.facts["parts"], after.facts["written"]) == (1, cache.record(2)[1])
