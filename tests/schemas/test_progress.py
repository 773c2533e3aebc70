"""Progress: tasks end even on errors, and their units are counted from those done before."""

import threading

import pytest

from kdpipe.schemas.progress import SilentProgress, Task, counting, running, tracked
from support.recording import RecordingProgress

TASK = Task(name="merge", unit="parts", total=5, done=2)


def test_a_task_is_finished_when_its_block_raises() -> None:
    progress = RecordingProgress()
    with pytest.raises(KeyError), running(progress, TASK):
        assert progress.open_tasks == [TASK]
        raise KeyError
    assert progress.open_tasks == []


def test_tracked_items_count_once_they_are_done() -> None:
    progress = RecordingProgress()
    seen = [(item, len(progress.updates["merge"])) for item in tracked("abc", progress, TASK)]
    assert seen == [("a", 0), ("b", 1), ("c", 2)]
    assert [update.done for update in progress.updates["merge"]] == [3, 4, 5]
    assert progress.open_tasks == []


def test_threads_count_together() -> None:
    progress = RecordingProgress()
    with counting(progress, TASK) as count:
        threads = [threading.Thread(target=count) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(update.done for update in progress.updates["merge"]) == [3, 4, 5]


def test_silent_progress_ignores_everything() -> None:
    progress = SilentProgress()
    progress.message("a message")
    progress.warning("a warning")
    assert list(tracked([1, 2], progress, TASK)) == [1, 2]
