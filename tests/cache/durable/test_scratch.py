"""Temporary folders that cannot be had or filled: the folder, what is free and what is needed are named."""

import os
import resource
import signal
import tempfile
from pathlib import Path

import pytest

from kdpipe.cache.durable.scratch import scratch_folder
from kdpipe.schemas.errors import WriteError
from support.children import in_child, mount_memory, mounted


def fill(folder: Path, n_bytes: int) -> None:
    (folder / "file").write_bytes(b"x" * n_bytes)


def test_a_folder_is_gone_afterwards_whatever_happens() -> None:
    with scratch_folder("kdpipe-test-", "trying") as folder:
        fill(folder, 10)
    assert not folder.exists()
    with pytest.raises(KeyError), scratch_folder("kdpipe-test-", "trying") as folder:
        fill(folder, 10)
        raise KeyError
    assert not folder.exists()


def test_a_full_temporary_folder_is_named_with_what_is_free_and_needed(tmp_path: Path) -> None:
    small = tmp_path / "small"

    def work() -> None:
        mount_memory(small, 8192)
        tempfile.tempdir = str(small)
        with scratch_folder("kdpipe-test-", "unpacking a file", 30_000) as folder:
            fill(folder, 30_000)

    ended = mounted(work)
    message, _, hint = ended.output.partition("\n")
    assert ended.code == 1, ended.output
    assert message.startswith(f"unpacking a file, 30,000 bytes: No space left on device ({small}/kdpipe-test-")
    assert " bytes free" in hint and "TMPDIR" in hint


def test_a_folder_of_another_is_not_taken_for_a_temporary_one(tmp_path: Path) -> None:
    """A full temporary folder is named as the one to free space in."""
    small = tmp_path / "small"

    def work() -> None:
        mount_memory(small, 8192)
        tempfile.tempdir = str(tmp_path)
        from kdpipe.cache.durable.files import translate_os_errors

        with translate_os_errors("writing", small):
            fill(small, 30_000)

    ended = mounted(work)
    assert ended.code == 1 and " bytes free" in ended.output and "TMPDIR" not in ended.output, ended.output


def test_a_limit_on_files_is_named(tmp_path: Path) -> None:
    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with scratch_folder("kdpipe-test-", "unpacking") as folder:
            fill(folder, 5000)

    ended = in_child(work)
    assert ended.code == 1 and "File too large" in ended.output and "ulimit -f" in ended.output, ended.output


def test_open_files_that_run_out_are_named() -> None:
    def work() -> None:
        with scratch_folder("kdpipe-test-", "unpacking") as folder:
            highest = max(map(int, os.listdir("/proc/self/fd")))
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, highest + 1))
            kept = [open(folder / str(n), "w") for n in range(highest + 2)]  # noqa: SIM115
            raise AssertionError(len(kept))

    ended = in_child(work)
    assert ended.code == 1 and "Too many open files" in ended.output and "ulimit -n" in ended.output, ended.output


def test_a_temporary_folder_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    refused = pytest.raises(WriteError, match=r"unpacking: No such file or directory \(.*/none\)")
    with refused as caught, scratch_folder("kdpipe-test-", "unpacking"):
        pytest.fail("a folder was made")
    assert "TMPDIR" in str(caught.value.hint)


def test_other_errors_are_left_as_they_are() -> None:
    with pytest.raises(FileNotFoundError), scratch_folder("kdpipe-test-", "unpacking") as folder:
        (folder / "none").read_bytes()
