"""Checks of an output directory: real file systems that are full or read-only, others simulated."""

import errno
import fcntl
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

from kdpipe.pipeline.diagnosis import file_system
from kdpipe.pipeline.diagnosis.file_system import output_directory
from kdpipe.schemas.doctor_report import Check
from kdpipe.schemas.errors import ConfigError

PROGRAM = """
import json, sys
from kdpipe.pipeline.diagnosis.file_system import output_directory
print(json.dumps([check.model_dump() for check in output_directory(sys.argv[1])]))
"""


def test_a_new_directory_is_checked_in_its_parent_and_nothing_is_left(tmp_path: Path) -> None:
    assert [check.name for check in output_directory(str(tmp_path / "a" / "b"))] == [
        "file system",
        "disk speed",
        "disk space",
    ]
    assert not list(tmp_path.iterdir())


def mounted(options: str, folder: Path) -> Check:
    """The first check in a tmpfs with some mount options, in a namespace of its own."""
    script = 'mount -t tmpfs -o "$0" none "$1" && exec "$2" -c "$3" "$1"'
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this system allows no mounts in namespaces")
    command = ["unshare", "-rm", "sh", "-c", script, options, str(folder), sys.executable, PROGRAM]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return Check(**json.loads(output)[0])


def test_a_full_disk_is_a_problem(tmp_path: Path) -> None:
    check = mounted("size=64k", tmp_path)
    assert check.level == "problem" and os.strerror(errno.ENOSPC) in check.what
    assert "free some space" in check.do


def test_a_read_only_directory_is_a_problem(tmp_path: Path) -> None:
    check = mounted("ro", tmp_path)
    assert check.level == "problem" and os.strerror(errno.EROFS) in check.what
    assert "permissions" in check.do


def failing(number: int) -> Any:
    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("target", "name", "number", "level", "word"),
    [
        (os, "link", errno.EPERM, "warning", "hard links"),
        (os, "link", errno.EIO, "problem", "link fails"),
        (fcntl, "flock", errno.ENOLCK, "warning", "locks"),
        (fcntl, "flock", errno.EIO, "problem", "lock fails"),
        (os, "fsync", errno.EIO, "problem", "fsync fails"),
        (Path, "replace", errno.EXDEV, "problem", "rename fails"),
    ],
)
def test_a_missing_operation(
    target: Any, name: str, number: int, level: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, name, failing(number))
    check = output_directory(str(tmp_path))[0]
    monkeypatch.undo()
    assert (check.level, word in check.what) == (level, True), check
    assert check.do
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("seconds", "level"), [([9.0, 0.1, 9.0], "ok"), ([9.0, 8.0, 9.0], "warning")])
def test_the_best_of_several_writes_counts(
    seconds: list[float], level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = itertools.accumulate(itertools.chain.from_iterable((0.0, taken) for taken in seconds))
    monkeypatch.setattr(file_system, "perf_counter", times.__next__)
    check = output_directory(str(tmp_path))[1]
    assert (check.name, check.level) == ("disk speed", level)


def test_little_space_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10**12, 10**12, 10**9))  # type: ignore[attr-defined]
    check = output_directory(str(tmp_path))[2]
    assert check.level == "warning" and "1.0 GB" in check.what


@pytest.mark.parametrize("below", ["", "new"])
def test_a_file_in_the_way_is_a_problem(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (check,) = output_directory(str(tmp_path / "file" / below))
    assert check.level == "problem" and str(tmp_path / "file") in check.what


def test_a_remote_directory_is_not_checked() -> None:
    (check,) = output_directory("s3://bucket/cache")
    assert check.level == "warning" and "s3://bucket/cache" in check.what
    with pytest.raises(ConfigError):
        output_directory("s3://user:password@bucket/cache")
