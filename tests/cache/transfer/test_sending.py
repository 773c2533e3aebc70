"""Copies onto disks that are full or may not be written to: reported, nothing wrong committed, resumed."""

import errno
import os
import re
import resource
import signal
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from kdpipe.cache import layout
from kdpipe.cache.opening import open_cache
from kdpipe.cache.transfer import copy_cache, copying
from kdpipe.cache.verify import verify_cache
from kdpipe.cli import main
from kdpipe.schemas.copy_report import PartSelection
from kdpipe.schemas.errors import CacheError, WriteError
from kdpipe.schemas.reshape import Bounds
from support import tiny
from support.children import Ended, in_child, mount_memory, mounted, remount
from support.faults import count_calls, fault_at

LEAN = PartSelection(without=("hidden",))
ONE = PartSelection(parts=Bounds(end=1), without=("hidden", "text"))
MB = 1 << 20


@pytest.fixture(autouse=True)
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the n-th call is the same call each time."""
    monkeypatch.setattr(copying, "LOCAL_PARTS", 1)


def assert_committed_is_right(copy: Path, whole: Path) -> None:
    """Whatever has its name is what it should be."""
    due = tiny.digests_of(whole)
    for name, digest in tiny.digests_of(copy).items() if copy.exists() else ():
        if not name.startswith(layout.WORK):
            assert due[name] == digest, name


@pytest.fixture(scope="module")
def lean(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a copy without hidden states should be."""
    folder = tmp_path_factory.mktemp("disks") / "lean"
    with tiny.unsynced():
        copy_cache(path, folder, selection=LEAN)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_any_call_may_be_refused(path: Path, tmp_path: Path, number: int) -> None:
    """Every other call that changes the disk is refused, each in a copy of its own; the same again finishes."""

    def refuse(_name: str, call: Callable[..., object], place: str) -> object:
        if place.startswith(f"{path}/"):  # the source
            return call()
        raise OSError(number, os.strerror(number))

    with tiny.unsynced():
        n_calls = count_calls(lambda: copy_cache(path, tmp_path / "first", selection=ONE))
        n_reported = 0
        for nth in range(1, n_calls + 1, 2):
            copy = tmp_path / str(nth)
            with fault_at(nth, refuse):
                try:
                    copy_cache(path, copy, selection=ONE)
                except (CacheError, WriteError) as error:
                    n_reported += 1
                    assert os.strerror(number) in error.message and error.hint
            assert_committed_is_right(copy, tmp_path / "first")
            copy_cache(path, copy, selection=ONE)
            assert tiny.digests_of(copy) == tiny.digests_of(tmp_path / "first")
    assert n_reported > n_calls / 6


@pytest.mark.parametrize("kilobytes", [4, 24, 48, 88])
def test_a_disk_that_fills_up_on_the_way(
    path: Path, lean: Path, tmp_path: Path, kilobytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "SPARE_BYTES", -(1 << 30))  # there was room when it was looked at
    small = tmp_path / "disk"

    def work() -> str:
        mount_memory(small, kilobytes << 10)
        try:
            copy_cache(path, small / "copy", selection=LEAN)
        except WriteError as error:
            messages = f"{error.exit_code} {error.message}\n{error.hint}"
        assert not (small / "copy" / layout.INDEX).exists()
        assert_committed_is_right(small / "copy", lean)
        remount(small, 4 * MB)
        copy_cache(path, small / "copy", selection=LEAN)
        assert tiny.digests_of(small / "copy") == tiny.digests_of(lean)
        return messages

    ended = mounted(work)
    assert ended.code == 0, ended.output
    assert re.match(r"1 .*: No space left on device \(.*disk/copy\)\nfree some space on the disk of ", ended.output)
    assert ended.output.endswith("committed parts are safe; then run the same command again")


def test_a_disk_that_may_not_be_written_to_is_reported_in_two_lines(path: Path, tmp_path: Path) -> None:
    small, damaged = tmp_path / "disk", tmp_path / "damaged"
    tiny.copy_cache(path, damaged)
    tiny.flip_bit(damaged / "parts/00001/sequences.arrow", 1000)

    def work() -> str:
        mount_memory(small, 64 * MB)
        tiny.copy_cache(damaged, small / "copy")
        remount(small, 64 * MB, read_only=True)
        messages = []
        for words in (
            ["copy", str(path), str(small / "new")],
            ["copy", str(path), str(small / "copy")],
            ["verify", str(small / "copy"), "--repair-from", str(path)],
        ):
            with redirect_stderr(StringIO()) as errors, redirect_stdout(StringIO()):
                messages.append(str(main.run(["cache", *words])))
            messages += [line for line in errors.getvalue().splitlines() if line.startswith(("error", "hint", "Trace"))]
        assert not (small / "new").exists()
        return "\n".join(messages)

    ended = mounted(work)
    assert ended.code == 0, ended.output
    lines = ended.output.splitlines()
    assert len(lines) == 9, ended.output
    for code, error, hint in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
        assert code == "1" and "Read-only file system" in error, ended.output
        assert hint == "hint: fix the permissions of the folder, or choose another one"


def limited_copy(source: Path, target: str, most_bytes: int) -> Ended:
    """Copy in a child that may not write a file longer than so much."""

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
        copy_cache(source, target)

    return in_child(work)


def test_files_that_may_not_grow_are_reported_and_the_copy_resumes(path: Path, tmp_path: Path) -> None:
    ended = limited_copy(path, str(tmp_path / "copy"), 3500)
    assert ended.code == 1 and ended.output.startswith("copying part 0: File too large"), ended.output
    assert "ulimit -f" in ended.output
    assert_committed_is_right(tmp_path / "copy", path)
    assert not (tmp_path / "copy" / layout.INDEX).exists()
    copy_cache(path, tmp_path / "copy")
    assert verify_cache(tmp_path / "copy", "full").ok
    assert open_cache(tmp_path / "copy").cache_id == open_cache(path).cache_id


def test_a_full_disk_here_on_the_way_to_a_url_is_reported(path: Path) -> None:
    ended = limited_copy(path, "memory://sent/here", 3500)
    assert ended.code == 1 and ended.output.startswith("downloading parts/0000"), ended.output
    assert f"File too large ({tempfile.gettempdir()}/kdpipe-copy-" in ended.output
