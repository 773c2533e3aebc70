"""Which part a worker makes next, alone and among others."""

from pathlib import Path

import pytest

from kdpipe.pipeline.capture.part_queue import WorkerShard, is_free, part_numbers
from support.tiny import begin_cache, write_part


def test_one_worker_makes_every_part_in_order(tmp_path: Path) -> None:
    assert list(part_numbers(begin_cache(tmp_path / "cache"), WorkerShard())) == [0, 1, 2, 3]


def test_a_worker_makes_its_share_first_and_then_what_others_left(tmp_path: Path) -> None:
    cache = begin_cache(tmp_path / "cache")
    assert list(part_numbers(cache, WorkerShard(index=1, count=2))) == [1, 3, 2, 0]
    assert list(part_numbers(cache, WorkerShard(index=0, count=3))) == [0, 3, 2, 1]


def test_a_part_that_is_made_meanwhile_is_passed_over(tmp_path: Path) -> None:
    cache = begin_cache(tmp_path / "cache")
    line = part_numbers(cache, WorkerShard(index=0, count=2))
    assert next(line) == 0
    write_part(begin_cache(tmp_path / "cache"), 2)
    write_part(begin_cache(tmp_path / "cache"), 3)
    assert list(line) == [1]


def test_a_part_that_another_is_at_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = begin_cache(tmp_path / "cache")
    monkeypatch.setattr(type(cache), "under_way", lambda self: {1, 2})
    assert list(part_numbers(cache, WorkerShard(index=0, count=2))) == [0, 3]
    assert [is_free(cache, number) for number in range(4)] == [True, False, False, True]


def test_a_part_that_is_there_is_not_free(tmp_path: Path) -> None:
    cache = begin_cache(tmp_path / "cache")
    assert is_free(cache, 3)
    write_part(begin_cache(tmp_path / "cache"), 3)
    assert not is_free(cache, 3)
