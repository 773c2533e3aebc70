"""A cache that a process cannot reach is not damaged: one clear error, exit code 1 or 2, never 3.

The system's refusals are played (tests may run as root), those of drivers come from a file system of the tests' own.
"""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec
import pytest
from fsspec import AbstractFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from kdpipe.cache import open_cache
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.cache.verify import verify_cache
from kdpipe.cli.main import run
from kdpipe.schemas.errors import CacheDamaged, CacheError, ConfigError, KdpipeError
from support.tiny import make_cache, unsynced

COMMANDS = [["inspect"], ["verify", "--level", "fast"], ["verify"]]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small cache in a folder."""
    path = tmp_path_factory.mktemp("access") / "cache"
    with unsynced():
        make_cache(path)
    return path


def refusing(call: str, place: Path, number: int) -> Any:
    """One of os's calls refuses a path; all others go through."""
    real: Callable[..., Any] = getattr(os, call)

    def played(path: Any, *rest: Any, **options: Any) -> Any:
        if not isinstance(path, int) and Path(path) == place:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *rest, **options)

    return mock.patch.object(os, call, played)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    ("call", "name", "reported"),
    [
        ("open", "manifest.json", "manifest.json cannot be read: Permission denied"),
        ("open", "index.parquet", "index.parquet cannot be read: Permission denied"),
        ("open", "parts/00002/part.json", "parts/00002/part.json cannot be read: Permission denied"),
        ("lstat", "manifest.json", "manifest.json cannot be read: Permission denied"),
        ("stat", "", "cannot be opened: Permission denied"),
    ],
)
def test_an_error_of_the_system_is_reported_as_one(
    call: str, name: str, reported: str, words: list[str], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with refusing(call, cache / name, errno.EACCES):
        code = run(["cache", words[0], str(cache), *words[1:]])
    if words == ["inspect"] and name.startswith("parts/"):
        assert code in (0, 1)  # it may answer from the index alone
        return
    assert code == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and str(cache) in error and error.endswith(reported)
    assert hint.startswith("hint: fix its permissions")


@pytest.mark.parametrize("name", ["", "parts", "parts/00001", "parts/00001/targets.zarr"])
def test_a_folder_that_may_not_be_listed_is_no_damage(name: str, cache: Path) -> None:
    place = cache / name
    real = os.scandir

    def played(path: Any) -> Any:
        if os.path.normpath(path) == str(place):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    with (
        mock.patch.object(os, "scandir", played),
        pytest.raises(CacheError, match=f"{place} cannot be listed: Permission denied") as caught,
    ):
        verify_cache(cache, "fast")
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.EMFILE, "raise the limit"),
        (errno.EIO, "check the disk"),
        (errno.ESTALE, "check the disk"),
    ],
)
def test_other_refusals_say_what_to_do_too(number: int, hint: str, cache: Path) -> None:
    with refusing("open", cache / "manifest.json", number), pytest.raises(CacheError, match="cannot be read") as caught:
        open_cache(cache)
    assert caught.value.exit_code == 1 and str(caught.value.hint).startswith(hint)


def test_no_memory_for_a_map_is_no_damage(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch("mmap.mmap", side_effect=OSError(errno.ENOMEM, "Cannot allocate memory")):
        assert run(["cache", "verify", str(cache)]) == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and error.endswith("cannot be read: Cannot allocate memory")
    assert hint.startswith("hint: ") and "ulimit" in hint


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO])
def test_what_is_not_there_or_no_file_is_damage(number: int, cache: Path) -> None:
    with refusing("open", cache / "manifest.json", number), pytest.raises(CacheDamaged, match="cannot be read"):
        open_cache(cache)


def test_invalid_paths_are_refused(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cache)
    for address, reported in [
        ("", "the path of the cache is empty"),
        ("file://", "the path of the cache is empty"),
        (cache / "manifest.json", "manifest.json is a file, not a folder"),
        (cache / "manifest.json" / "x", "no such folder:"),
        ("a\0b", "is not a valid path"),
        ("x" * 5000, "no such folder:"),
    ]:
        with pytest.raises(ConfigError, match=reported) as refused:
            open_cache(address)
        assert str(refused.value.hint).startswith("give the folder that holds manifest.json")
    with pytest.raises(ConfigError) as refused:
        open_cache(cache / "manifest.json")
    assert str(refused.value.hint).endswith(f": {cache}?")


def test_a_file_url_is_decoded(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "a b%").symlink_to(cache)
    identity = open_cache(cache).cache_id
    assert open_cache((tmp_path / "a b%").as_uri()).cache_id == identity
    assert open_cache(f"file://{tmp_path}/a%20b%25").cache_id == identity


class Foreign(Exception):
    """An error of a driver's own, as httpx and botocore have them."""


class Unreliable(MemoryFileSystem):  # type: ignore[misc]  # fsspec ships no types
    """A bucket whose calls can be made to fail."""

    protocol = "unreliable"
    store: dict[str, Any] = {}  # noqa: RUF012  (fsspec's own form: all instances share one memory)
    pseudo_dirs: list[str] = [""]  # noqa: RUF012
    failure: Exception | None = None
    call, place = "", ""

    @classmethod
    def _strip_protocol(cls, path: str) -> Any:
        return super()._strip_protocol(path.replace("unreliable://", "memory://"))

    @classmethod
    def _meet(cls, call: str, path: str) -> None:
        if cls.failure is not None and call == cls.call and str(path).rstrip("/").endswith(cls.place):
            raise cls.failure

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        """List, or fail."""
        self._meet("ls", path)
        return super().ls(path, detail, **options)

    def find(self, path: str, *words: Any, **options: Any) -> Any:
        """Walk through `ls`, as most drivers do: what that is refused is left out without a word."""
        return AbstractFileSystem.find(self, path, *words, **options)

    def info(self, path: str, **options: Any) -> Any:
        """Describe, or fail."""
        self._meet("info", path)
        return super().info(path, **options)

    def cat_file(self, path: str, *words: Any, **options: Any) -> Any:
        """Fetch, or fail."""
        self._meet("cat_file", path)
        return super().cat_file(path, *words, **options)


@pytest.fixture
def bucket(cache: Path) -> Iterator[str]:
    """The same cache in a bucket that can fail."""
    fsspec.register_implementation("unreliable", Unreliable, clobber=True)
    system = fsspec.filesystem("unreliable")
    system.put(str(cache), "/bucket/cache", recursive=True)
    yield "unreliable://bucket/cache"
    Unreliable.failure = None
    system.rm("/bucket", recursive=True)


FAILURES = {
    "refused": (PermissionError("403 Forbidden"), "denies access: PermissionError: 403 Forbidden"),
    "no network": (ConnectionError("name or service not known"), "cannot be reached: ConnectionError: name or"),
    "its own": (Foreign("timeout\nat line 3"), "cannot be reached: Foreign: timeout"),
    "silent": (OSError(), "cannot be reached: OSError"),
}
PLACES = [
    ("info", "cache"), ("ls", "cache"), ("info", "manifest.json"), ("cat_file", "manifest.json"), ("ls", "parts"),
    ("cat_file", "parts/00001/part.json"), ("info", "index.parquet"), ("ls", "parts/00002"),
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES, ids=" ".join)
@pytest.mark.parametrize("failure", FAILURES)
def test_an_error_of_a_driver_is_one_clear_error(
    failure: str, place: tuple[str, str], bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error, reported = FAILURES[failure]
    for name, value in {"failure": error, "call": place[0], "place": place[1]}.items():
        monkeypatch.setattr(Unreliable, name, value)
    with pytest.raises(KdpipeError) as caught:
        verify_cache(bucket, "fast", RetryPolicy(budget=0))
    # What may work another time exits as an interruption does.
    assert caught.value.exit_code == (1 if failure == "refused" else 75), caught.value.message
    assert caught.value.message.startswith("unreliable://bucket/cache") and reported in caught.value.message
    assert "\n" not in caught.value.message and caught.value.hint is not None


def test_a_file_that_goes_while_it_is_fetched_is_damage(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"failure": FileNotFoundError("x"), "call": "cat_file", "place": "manifest.json"}.items():
        monkeypatch.setattr(Unreliable, name, value)
    with pytest.raises(CacheDamaged, match=r"manifest\.json does not exist"):
        open_cache(bucket)


def test_urls_that_lead_to_no_folder_are_refused(bucket: str, tmp_path: Path) -> None:
    for address, reported in [
        (f"{bucket}/manifest.json", "manifest.json is a file, not a folder"),
        (f"{bucket}/nowhere", "no such folder:"),
        (f"zip://{tmp_path}", "cannot be reached: IsADirectoryError"),
        (f"zip://inner::{tmp_path}", "cannot be reached|no such folder:"),
        ("ftp://127.0.0.1:9/x", "ftp://127.0.0.1:9/x cannot be reached: ConnectionRefusedError"),
    ]:
        with pytest.raises((ConfigError, CacheError), match=reported) as caught:
            open_cache(address)
        assert caught.value.exit_code == (1 if address.startswith("ftp:") else 2)
