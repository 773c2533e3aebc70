"""Several writers of one cache, living and dead, of this machine and others: one good result, and no fight about it.

Threads meet at a barrier inside the part, processes at a pipe, so that they finish it at the same moment.
"""

import os
import secrets
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from kdpipe.cache import layout
from kdpipe.cache.durable import work_names as workers
from kdpipe.cache.durable.files import sweep
from kdpipe.cache.durable.work_names import is_abandoned, work_name
from kdpipe.cache.opening import create_cache, open_cache
from kdpipe.cache.writing.folder import STALE_SECONDS
from support.children import Child, in_child
from support.gates import Gate
from support.tiny import (
    SMALL,
    begin_cache,
    digests_of,
    make_cache,
    manifest_of,
    part_of,
    problems_of_committed,
    resume_cache,
    write_part,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads what /proc knows of a process")

N_WRITERS = 4
MEETING_SECONDS = 20


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The cache_id when nothing goes wrong."""
    return make_cache(tmp_path_factory.mktemp("whole") / "cache")


def write_marked(path: Path, number: int, mark: int, meet: Callable[[], object]) -> None:
    """Write a part that names its writer in part.json and in its data, and meet the others before it is committed."""
    writer = begin_cache(path)
    with writer.part(number) as part:
        part.batches_halved = mark
        for sequence, block in part_of(SMALL, number):
            columns = {**sequence.columns, "year": [mark] * len(sequence.documents)}
            part.add(replace(sequence, columns=columns), block)
        meet()


def check_one_writer(path: Path, number: int) -> None:
    """The part is good, and all its files are of the writer that part.json names."""
    assert problems_of_committed(path) == []
    cache = open_cache(path, allow_partial=True)
    part, _ = cache.locate(0)
    assert part.number == number
    years = {year for i in range(len(cache)) for year in cache.columns(i)["year"]}
    assert years == {part.record.batches_halved}


@pytest.mark.parametrize("attempt", range(3))
def test_threads_that_write_one_part_leave_one_good_part(tmp_path: Path, attempt: int) -> None:
    path, barrier = tmp_path / "cache", threading.Barrier(N_WRITERS, timeout=MEETING_SECONDS)
    part_of(SMALL, attempt)
    with ThreadPoolExecutor(N_WRITERS) as pool:
        running = [pool.submit(write_marked, path, attempt, mark, barrier.wait) for mark in range(N_WRITERS)]
        for future in running:
            future.result()
    check_one_writer(path, attempt)
    assert list((path / layout.WORK).iterdir()) == []


@pytest.mark.parametrize("attempt", range(3))
def test_processes_that_write_one_part_leave_one_good_part(tmp_path: Path, attempt: int) -> None:
    path, gate = tmp_path / "cache", Gate(N_WRITERS)
    part_of(SMALL, attempt)
    children = [Child(partial(write_marked, path, attempt, mark, gate.pass_through)) for mark in range(N_WRITERS)]
    gate.wait()
    gate.open()
    assert [child.wait().output for child in children] == [""] * N_WRITERS
    check_one_writer(path, attempt)


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(3))
def test_processes_that_make_the_same_cache_at_once_all_end_with_it(tmp_path: Path, whole: str, attempt: int) -> None:
    path, gate = tmp_path / "cache", Gate(N_WRITERS)

    def work() -> str:
        gate.pass_through()
        return resume_cache(path)

    children = [Child(work) for _ in range(N_WRITERS)]
    gate.wait()
    gate.open()
    assert [child.wait().output for child in children] == [whole] * N_WRITERS, attempt
    assert resume_cache(path) == whole
    assert not (path / layout.WORK).exists()


def test_a_work_folder_that_another_sweeps_away_in_between_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: str
) -> None:
    real, swept = os.mkdir, list[str]()

    def mkdir(path: Path, mode: int = 0o777, **options: int) -> None:
        if path.name.startswith("00000~") and not swept:
            swept.append(path.name)
            os.rmdir(path.parent)
        real(path, mode, **options)

    writer = begin_cache(tmp_path / "cache")
    monkeypatch.setattr(os, "mkdir", mkdir)
    write_part(writer, 0)
    assert swept
    assert resume_cache(tmp_path / "cache") == whole


def test_a_cache_that_another_begins_in_between_is_no_foreign_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: str
) -> None:
    real, looked = Path.exists, list[Path]()

    def exists(path: Path) -> bool:
        if path.name == layout.MANIFEST and not looked:
            looked.append(path)
            begin_cache(path.parent)
            return False
        return real(path)

    monkeypatch.setattr(Path, "exists", exists)
    assert resume_cache(tmp_path / "cache") == whole
    assert looked


def test_a_second_writer_uses_the_tables_of_the_first(tmp_path: Path) -> None:
    first = create_cache(tmp_path / "cache", manifest_of(SMALL))
    second = create_cache(tmp_path / "cache", manifest_of(SMALL))
    first.publish_tables({"ids_by_rank": np.arange(300, dtype=np.uint32)})
    before = digests_of(tmp_path / "cache")
    second.publish_tables({"ids_by_rank": np.arange(300, dtype=np.uint32)[::-1]})
    assert digests_of(tmp_path / "cache") == before
    for number in second.missing():
        write_part(second, number)
    second.seal()
    assert open_cache(tmp_path / "cache").table("ids_by_rank").tolist() == list(range(300))


def test_tables_that_lose_the_race_are_discarded(tmp_path: Path) -> None:
    barrier = threading.Barrier(N_WRITERS, timeout=MEETING_SECONDS)

    def publish(shift: int) -> None:
        writer = create_cache(tmp_path / "cache", manifest_of(SMALL))
        barrier.wait()
        writer.publish_tables({"ids_by_rank": np.roll(np.arange(300, dtype=np.uint32), shift)})
        write_part(writer, shift)

    with ThreadPoolExecutor(N_WRITERS) as pool:
        list(pool.map(publish, range(N_WRITERS)))
    assert problems_of_committed(tmp_path / "cache") == []
    writer = create_cache(tmp_path / "cache", manifest_of(SMALL))
    assert writer.missing() == []
    writer.seal()


def stale(path: Path, name: str) -> Path:
    """A work folder with something in it."""
    work = path / layout.WORK / name
    (work / layout.TARGETS).mkdir(parents=True)
    (work / layout.SEQUENCES).write_bytes(b"half a file")
    return work


def test_what_a_dead_process_left_is_swept(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    begin_cache(path)
    work = stale(path, in_child(lambda: work_name("00001")).output)
    writer = begin_cache(path)
    assert not work.exists()
    assert writer.missing() == [0, 1, 2, 3]


def test_what_this_machine_left_before_it_rebooted_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin_cache(tmp_path / "cache")
    work = stale(tmp_path / "cache", work_name("00001"))
    monkeypatch.setattr(workers, "boot_id", lambda: "another")
    assert sweep(tmp_path / "cache") == []
    assert not work.exists()


def test_the_part_of_a_living_process_is_left_alone_and_comes_last(tmp_path: Path) -> None:
    path, gate = tmp_path / "cache", Gate(1)

    child = Child(partial(write_marked, path, 1, 0, gate.pass_through))
    gate.wait()
    writer = begin_cache(path)
    assert writer.missing() == [0, 2, 3, 1]
    assert writer.under_way() == {1}
    gate.open()
    assert child.wait().code == 0
    assert writer.missing() == [0, 2, 3]
    assert writer.under_way() == set()


def test_a_worker_ignores_its_own_work_folder(tmp_path: Path) -> None:
    writer = begin_cache(tmp_path / "cache")
    with pytest.raises(RuntimeError, match="enough"), writer.part(1):
        assert writer.missing() == [0, 2, 3, 1]
        assert writer.under_way() == set()
        raise RuntimeError("enough")


def test_a_part_that_has_not_changed_for_long_is_under_way_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cache"
    writer = begin_cache(path)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("socket.gethostname", lambda: "elsewhere.example.org")
        work = stale(path, work_name("00002"))
    assert writer.under_way() == {2}
    long_ago = time.time() - 2 * STALE_SECONDS
    for file in (*work.rglob("*"), work):
        os.utime(file, (long_ago, long_ago))
    assert writer.under_way() == set()


def test_the_part_of_another_machine_is_left_alone_and_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: str
) -> None:
    path = tmp_path / "cache"
    begin_cache(path)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("socket.gethostname", lambda: "elsewhere.example.org")
        elsewhere.setattr(workers, "boot_id", lambda: "another")
        work = stale(path, work_name("00002"))
    assert begin_cache(path).missing() == [0, 1, 3, 2]
    assert resume_cache(path) == whole
    assert (work / layout.SEQUENCES).exists()


def test_a_name_that_cannot_be_judged_is_left_alone() -> None:
    own = work_name("00001").split("~")
    dead = in_child(lambda: work_name("00001")).output.split("~")
    assert is_abandoned("~".join(dead))
    assert not is_abandoned("~".join(own))
    assert not is_abandoned("notes.txt")
    assert not is_abandoned("~".join([dead[0], "elsewhere", *dead[2:]]))
    assert not is_abandoned("~".join([*dead[:4], "many", *dead[5:]]))
    # Another container of this machine: its process numbers mean nothing here.
    assert not is_abandoned("~".join([*dead[:3], "1", *dead[4:]]))


def test_a_process_number_that_was_given_out_again_is_not_taken_for_its_owner() -> None:
    own = work_name("00001").split("~")
    assert is_abandoned("~".join([*own[:5], "1", secrets.token_hex(4)]))


def test_a_process_that_is_dead_but_not_yet_waited_for_is_dead() -> None:
    read, write = os.pipe()
    child = Child(lambda: str(os.write(write, work_name("00001").encode())))
    name = os.read(read, 4096).decode()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert is_abandoned(name)
    assert child.wait().code == 0
