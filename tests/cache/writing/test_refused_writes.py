"""A system that refuses: full disks, limits, read-only folders, errors at any call, Ctrl-C, folders with other things.

Each ends in a message with the error, the place and a hint; what was committed stays, nothing half-made is visible, and
the same command resumes.
"""

import errno
import os
import re
import resource
import shutil
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import pytest

from kdpipe.cache import layout
from kdpipe.cache.durable import files
from kdpipe.cache.durable.files import BUFFER_BYTES, WriteFailed, new_file
from kdpipe.schemas.errors import CacheWriteError, KdpipeError, WriteError
from support.children import Child, in_child, mount_memory, mounted, remount
from support.faults import count_calls, fault_at, interrupted, refused
from support.tiny import (
    SMALL,
    begin_cache,
    digests_of,
    make_cache,
    part_of,
    parts_in,
    problems_of_committed,
    resume_cache,
    unsynced,
    write_part,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mounts, limits and descriptors are those of Linux")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The cache_id when nothing goes wrong."""
    return make_cache(tmp_path_factory.mktemp("whole") / "cache")


def leftovers(path: Path) -> list[str]:
    """What a stopped writer has left in its work folder."""
    work = path / layout.WORK
    return sorted(entry.name for entry in work.iterdir()) if work.is_dir() else []


def fill_then_resume(disk: Path) -> str:
    """Write until the disk is full, list the files, then resume with more room."""
    mount_memory(disk, 160 << 10)
    path = disk / "cache"
    try:
        make_cache(path)
    except WriteError as error:
        messages = f"{error.message}\n{error.hint}\n"
    else:
        raise AssertionError("everything fits")
    there = list(parts_in(path))
    digests = {name: digest for name, digest in digests_of(path).items() if name.startswith(layout.PARTS)}
    assert there and problems_of_committed(path) == [] and leftovers(path) == []
    remount(disk, 4 << 20)
    identity = resume_cache(path)
    assert digests.items() <= digests_of(path).items()
    return f"{messages}{len(there)} parts\n{identity}"


def test_a_full_disk_stops_with_advice_and_nothing_is_lost(tmp_path: Path, whole: str) -> None:
    disk = tmp_path / "disk"
    ended = mounted(partial(fill_then_resume, disk))
    assert ended.code == 0, ended.output
    message, hint, parts, identity = ended.output.splitlines()
    number = int(parts.split()[0])
    assert message == f"writing part {number}: No space left on device ({disk}/cache)"
    assert re.fullmatch(
        rf"free some space on the disk of {disk}/cache \([\d,]+ bytes free\): "
        "committed parts are safe; then run the same command again",
        hint,
    )
    assert identity == whole


def test_a_limit_on_file_sizes_is_named(tmp_path: Path, whole: str) -> None:
    path = tmp_path / "cache"

    def limited() -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
        return make_cache(path)

    ended = in_child(limited)
    assert ended.code == 1, ended.output
    message, hint = ended.output.splitlines()
    assert message == f"writing part 0: File too large ({path})"
    assert hint.startswith("raise the limit on file sizes (ulimit -f), or use smaller parts: committed parts are safe")
    assert leftovers(path) == []
    assert resume_cache(path) == whole


def test_a_chunk_that_the_disk_refuses_in_the_middle_of_a_part_is_explained(tmp_path: Path) -> None:
    def limited() -> str:
        writer = begin_cache(tmp_path / "cache")
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
        with mock.patch.object(files, "BUFFER_BYTES", 64), writer.part(0) as part:
            for _ in range(100):
                part.add(*part_of(SMALL, 0)[0])
            raise AssertionError("no chunk was written yet")
        return "committed"

    ended = in_child(limited)
    assert ended.code == 1, ended.output
    assert ended.output.splitlines()[0] == f"writing part 0: File too large ({tmp_path}/cache)"


def test_a_limit_on_open_files_is_named(tmp_path: Path) -> None:
    def limited() -> str:
        writer = begin_cache(tmp_path / "cache")
        # The limit bounds the numbers of files, and a test run leaves gaps among them.
        highest = max(map(int, os.listdir("/proc/self/fd")))
        while (last := os.open(os.devnull, os.O_RDONLY)) <= highest:
            pass
        resource.setrlimit(resource.RLIMIT_NOFILE, (last + 4, last + 4))
        write_part(writer, 0)
        return "written"

    ended = in_child(limited)
    assert ended.code == 1, ended.output
    assert ended.output.splitlines()[0] == f"writing part 0: Too many open files ({tmp_path}/cache)"
    assert "raise the limit on open files (ulimit -n)" in ended.output


def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    disk = tmp_path / "disk"

    def work() -> str:
        mount_memory(disk, 1 << 20)
        remount(disk, 1 << 20, read_only=True)
        return make_cache(disk / "cache")

    ended = mounted(work)
    assert ended.code == 1, ended.output
    message, hint = ended.output.splitlines()
    assert message == f"creating the cache: Read-only file system ({disk}/cache)"
    assert hint == "fix the permissions of the folder, or choose another one"


def test_a_finished_cache_on_a_read_only_disk_is_found_finished(tmp_path: Path, whole: str) -> None:
    disk = tmp_path / "disk"

    def work() -> str:
        mount_memory(disk, 4 << 20)
        make_cache(disk / "cache")
        remount(disk, 4 << 20, read_only=True)
        return resume_cache(disk / "cache")

    ended = mounted(work)
    assert (ended.code, ended.output) == (0, whole)


def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o555)

    def work() -> str:
        if os.geteuid() == 0:
            os.setegid(65534)
            os.seteuid(65534)
        if os.access(tmp_path, os.X_OK, effective_ids=True):
            return make_cache(tmp_path / "closed" / "cache")
        with fault_at(1, refused(errno.EACCES)):
            return make_cache(tmp_path / "closed" / "cache")

    ended = in_child(work)
    assert ended.code == 1, ended.output
    message, hint = ended.output.splitlines()
    assert message == f"creating the cache: Permission denied ({tmp_path}/closed/cache)"
    assert hint == "fix the permissions of the folder, or choose another one"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "advice"), [(errno.ENOSPC, "free some space"), (errno.EIO, "check the disk")])
def test_an_error_at_any_call_is_explained_and_nothing_is_lost(
    tmp_path: Path, whole: str, number: int, advice: str
) -> None:
    with unsynced():
        fail_at_calls(tmp_path, whole, number, advice, 19)


@pytest.mark.soak
def test_an_error_at_every_call_is_explained_and_nothing_is_lost(tmp_path: Path, whole: str) -> None:
    n_calls = fail_at_calls(tmp_path, whole, errno.ENOSPC, "free some space", 1)
    sys.stdout.write(f"{n_calls} calls, each refused once\n")


def fail_at_calls(folder: Path, whole: str, number: int, advice: str, step: int) -> int:
    """Refuse one call after another, every time in a cache of its own; how many there are."""
    n_calls = count_calls(partial(make_cache, folder / "counted"))
    n_stopped = 0
    for place in range(1, n_calls + 1, step):
        path = folder / str(place)
        try:
            with fault_at(place, refused(number)):
                make_cache(path)
        except KdpipeError as error:
            n_stopped += 1
            assert os.strerror(number) in error.message
            if isinstance(error, WriteError):
                assert str(path) in error.message
                assert error.hint is not None
                assert advice in error.hint
        if (path / layout.MANIFEST).exists():
            assert problems_of_committed(path) == []
        assert resume_cache(path) == whole, place
    assert n_stopped > 0.6 * n_calls / step
    return n_calls


def test_ctrl_c_in_the_middle_of_a_part_leaves_nothing_half_made(tmp_path: Path, whole: str) -> None:
    path = tmp_path / "cache"
    writer = begin_cache(path)
    write_part(writer, 0)
    with pytest.raises(KeyboardInterrupt), writer.part(1) as part:
        part.add(*part_of(SMALL, 1)[0])
        raise KeyboardInterrupt
    assert leftovers(path) == []
    assert list(parts_in(path)) == [0]
    assert resume_cache(path) == whole


@pytest.mark.slow
def test_ctrl_c_at_any_call_leaves_what_can_be_resumed(tmp_path: Path, whole: str) -> None:
    with unsynced():
        n_calls = count_calls(partial(make_cache, tmp_path / "counted"))
        for place in range(2, n_calls, 31):
            path = tmp_path / str(place)

            def work(path: Path = path, place: int = place) -> str:
                with fault_at(place, interrupted):
                    return make_cache(path)

            ended = Child(work).wait()
            assert (ended.code, ended.output) == (75, "interrupted")
            if (path / layout.MANIFEST).exists():
                assert problems_of_committed(path) == []
            assert resume_cache(path) == whole
            assert leftovers(path) == []


def test_an_error_of_the_callers_own_code_keeps_its_own_words(tmp_path: Path) -> None:
    writer = begin_cache(tmp_path / "cache")
    with pytest.raises(ConnectionError, match="the teacher is gone"), writer.part(0):
        raise ConnectionError("the teacher is gone")
    assert leftovers(tmp_path / "cache") == []


def test_a_file_that_lost_bytes_is_never_called_written(tmp_path: Path) -> None:
    def limited() -> str:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        with pytest.raises(WriteFailed, match="File too large"), new_file(tmp_path / "file") as file:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
            with pytest.raises(WriteFailed):
                file.write(bytes(4 * BUFFER_BYTES))
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            file.write(b"more")
        return "refused"

    ended = in_child(limited)
    assert (ended.code, ended.output) == (0, "refused")


def test_a_part_whose_files_something_else_removes_is_not_committed(tmp_path: Path, whole: str) -> None:
    path = tmp_path / "cache"
    writer = begin_cache(path)
    with pytest.raises(CacheWriteError) as caught, writer.part(0) as part:
        for sequence, block in part_of(SMALL, 0):
            part.add(sequence, block)
        (work,) = (path / layout.WORK).iterdir()
        (work / layout.array_shard("id")).unlink()
    assert all(word in str(caught.value) for word in ("part 0", "targets.zarr/id/c/0", str(work)))
    assert list(parts_in(path)) == []
    assert resume_cache(path) == whole


def test_a_work_folder_that_goes_away_is_named(tmp_path: Path) -> None:
    writer = begin_cache(tmp_path / "cache")
    with pytest.raises(WriteError, match="writing part 0: No such file or directory") as caught, writer.part(0):
        shutil.rmtree(tmp_path / "cache" / layout.WORK)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("another program removed a folder during the write")
