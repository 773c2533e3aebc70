"""Stage one killed and run again: the same cache, nothing computed twice but the parts under way."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from kdpipe.cache.opening import open_cache
from support.children import Child
from support.stage_one import RecordingProgress, make_inputs, run, settings_for

PARTS = {"part_rows": 512}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    make_inputs(folder, n_documents=60)
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> str:
    identity = run(settings_for(folder, "whole", sequences=PARTS)).cache_id
    assert identity is not None
    return identity


def start(folder: Path, out: str, shard: int = 0, n_shards: int = 1) -> Child:
    """Stage one in a process of its own."""
    settings = settings_for(folder, out, sequences=PARTS)

    def work() -> None:
        run(settings, shard=shard, n_shards=n_shards)

    return Child(work)


def has_ended(child: Child) -> bool:
    """Whether a child has come to its end, which is still to be waited for."""
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def n_parts(path: Path) -> int:
    """The parts that are there."""
    return len(list((path / "parts").glob("[0-9]*"))) if (path / "parts").is_dir() else 0


def kill_after(process: Child, path: Path, parts: int, delay: float) -> None:
    """Kill it some moments after so many parts are there."""
    deadline = time.monotonic() + 900
    while n_parts(path) < parts and not has_ended(process) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(delay)
    process.kill()
    process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_killed_run_resumes_to_the_same_cache(folder: Path, whole: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    path = folder / f"killed-{seed}"
    for _ in range(3):
        there = n_parts(path)
        parts = there + int(generator.integers(0, 4))
        kill_after(start(folder, path.name), path, parts, float(generator.uniform(0, 0.2)))
    before = {part.name: os.stat(part).st_ino for part in (path / "parts").glob("[0-9]*")}
    progress = RecordingProgress()
    report = run(settings_for(folder, path.name, sequences=PARTS), progress)
    assert report.cache_id == whole
    # What was there was not made again: same folders, and the run made exactly the others.
    assert all(os.stat(path / "parts" / name).st_ino == inode for name, inode in before.items())
    assert report.parts.made == report.parts.planned - len(before)
    assert progress.updates["cache-teacher"][-1].facts["parts"] == report.parts.made


@pytest.mark.soak
def test_ten_kills_at_random_moments_end_in_the_same_cache(folder: Path, whole: str) -> None:
    generator = np.random.default_rng(11)
    path = folder / "killed-often"
    made = 0
    for _ in range(10):
        before = n_parts(path)
        after = before + int(generator.integers(0, 4))
        kill_after(start(folder, path.name), path, after, float(generator.uniform(0, 0.2)))
        made += n_parts(path) - before
    report = run(settings_for(folder, path.name, sequences=PARTS))
    sys.stdout.write(f"10 kills: {made} parts before the last run, {report.parts.made} by it\n")
    assert report.parts.made > 0, "the kills came after the work was done"
    assert report.cache_id == whole
    assert made + report.parts.made == report.parts.planned


@pytest.mark.slow
def test_workers_at_once_make_one_cache(folder: Path, whole: str) -> None:
    workers = [start(folder, "together", i, 3) for i in range(3)]
    assert [worker.wait().code for worker in workers] == [0, 0, 0]
    assert open_cache(folder / "together").cache_id == whole


@pytest.mark.slow
def test_parts_of_a_killed_worker_are_made_by_another(folder: Path, whole: str) -> None:
    path = folder / "orphaned"
    kill_after(start(folder, path.name, 1, 2), path, 2, 0.05)
    there = n_parts(path)
    report = run(settings_for(folder, path.name, sequences=PARTS), shard=0, n_shards=2)
    assert report.complete and report.cache_id == whole
    assert report.parts.made == report.parts.planned - there


@pytest.mark.slow
def test_an_interrupt_drops_the_part_under_way_and_keeps_the_rest(folder: Path, whole: str) -> None:
    path = folder / "interrupted"
    process = start(folder, path.name)
    while n_parts(path) < 2 and not has_ended(process):
        time.sleep(0.01)
    process.kill(signal.SIGINT)
    assert process.wait().code == 75
    assert not (path / "tmp").exists() or not list((path / "tmp").iterdir())
    assert run(settings_for(folder, path.name, sequences=PARTS)).cache_id == whole
