"""Parts written in a thread: committed whole, dropped whole, and what fails in the thread is heard."""

import threading
from pathlib import Path
from typing import Any

import pytest

from kdpipe.cache.opening import open_cache
from kdpipe.pipeline.capture.buffer_limits import MAX_SEQUENCES
from kdpipe.pipeline.capture.writer_thread import WritingThread
from kdpipe.schemas.errors import CacheWriteError, KdpipeError
from support.tiny import SMALL, begin_cache, make_cache, part_of


def test_parts_written_behind_are_the_ones_written_in_front(tmp_path: Path) -> None:
    whole = make_cache(tmp_path / "whole")
    cache = begin_cache(tmp_path / "behind")
    committed: list[int] = []
    writing = WritingThread(cache, committed.append)
    for number in cache.missing():
        with writing.part(number) as part:
            for sequence, block in part_of(SMALL, number):
                part.add(sequence, block)
    writing.wait()
    writing.close()
    assert committed == [0, 1, 2, 3]
    assert cache.seal() == whole


def test_a_part_is_dropped_when_the_teacher_fails(tmp_path: Path) -> None:
    cache = begin_cache(tmp_path / "cache")
    writing = WritingThread(cache, lambda number: None)
    with pytest.raises(RuntimeError, match="no more"), writing.part(2) as part:
        part.add(*part_of(SMALL, 2)[0])
        raise RuntimeError("no more")
    assert cache.missing() == [0, 1, 2, 3]
    assert not list((tmp_path / "cache" / "tmp").iterdir())
    with writing.part(2) as part:
        for sequence, block in part_of(SMALL, 2):
            part.add(sequence, block)
    writing.wait()
    assert cache.missing() == [0, 1, 3]
    writing.close()


def test_an_interrupt_as_a_part_is_begun_leaves_no_thread_that_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = begin_cache(tmp_path / "cache")
    writing = WritingThread(cache, lambda number: None)
    submit = writing._executor.submit

    def interrupted(*request: Any) -> None:
        submit(*request)
        raise KeyboardInterrupt

    monkeypatch.setattr(writing._executor, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt), writing.part(0):
        raise AssertionError("the part was never begun")
    closing = threading.Thread(target=writing.close, daemon=True)
    closing.start()
    closing.join(900)
    assert not closing.is_alive()
    assert cache.missing() == [0, 1, 2, 3]
    assert not list((tmp_path / "cache" / "tmp").iterdir())


@pytest.mark.parametrize("n", [1, 3 * MAX_SEQUENCES])
def test_what_fails_in_the_thread_is_raised_where_the_part_is_made(tmp_path: Path, n: int) -> None:
    cache = begin_cache(tmp_path / "cache")
    writing = WritingThread(cache, lambda number: None)
    sequence, block = part_of(SMALL, 2)[0]  # of another part than the one it is given to
    with pytest.raises(CacheWriteError, match=r"part 0.*documents 0.*3"):
        with writing.part(0) as part:
            for _ in range(n):
                part.add(sequence, block)
        writing.wait()
    assert cache.missing() == [0, 1, 2, 3]
    writing.close()


def test_a_reader_opens_what_the_thread_has_written(tmp_path: Path) -> None:
    cache = begin_cache(tmp_path / "cache")
    writing = WritingThread(cache, lambda number: None)
    for number in cache.missing():
        with writing.part(number) as part:
            for sequence, block in part_of(SMALL, number):
                part.add(sequence, block)
    writing.wait()
    writing.close()
    cache.seal()
    assert len(open_cache(tmp_path / "cache")) == sum(len(part_of(SMALL, number)) for number in range(4))


def test_a_part_that_fails_late_is_heard_at_the_next_but_one_or_at_the_end(tmp_path: Path) -> None:
    cache = begin_cache(tmp_path / "cache")
    writing = WritingThread(cache, lambda number: None)
    (tmp_path / "cache" / "parts").write_text("in the way")
    with writing.part(0) as part:
        for sequence, block in part_of(SMALL, 0):
            part.add(sequence, block)
    with pytest.raises(KdpipeError, match="writing part 0: File exists"):
        with writing.part(1) as part:
            for sequence, block in part_of(SMALL, 1):
                part.add(sequence, block)
        writing.wait()
    writing.close()
