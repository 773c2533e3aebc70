"""A cache behind a URL is the cache in the folder: fsspec, file:// and relative paths."""

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import fsspec
import pytest

from kdpipe.cache import open_cache
from kdpipe.cache.inspect import inspect_cache
from kdpipe.schemas.errors import CacheDamaged, CacheIncomplete, ConfigError
from support import tiny
from support.reading import digests_of_all


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small cache in a folder."""
    folder = tmp_path_factory.mktemp("remote") / "cache"
    with tiny.unsynced():
        tiny.make_cache(folder)
    return folder


@pytest.fixture
def url(path: Path) -> Iterator[str]:
    """The same cache in fsspec's memory."""
    memory = fsspec.filesystem("memory")
    memory.put(str(path), "/bucket/cache", recursive=True)
    yield "memory://bucket/cache"
    memory.rm("/bucket", recursive=True)


def test_every_address_of_a_cache_reads_the_same(path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    local = open_cache(path)
    monkeypatch.chdir(path.parent)
    addresses: list[str | Path] = [
        url,
        f"{url}/",
        f"file://{path}",
        f"local://{path}",
        str(path),
        f"{path}/",
        "cache",
        "./cache",
        path,
    ]
    for address in addresses:
        cache = open_cache(address)
        assert cache.cache_id == local.cache_id
        assert digests_of_all(cache) == digests_of_all(local)
        assert [cache.texts(i) for i in range(len(cache))] == [local.texts(i) for i in range(len(local))]


def test_a_remote_cache_of_which_few_parts_fit_reads_the_same(path: Path, url: str) -> None:
    assert digests_of_all(open_cache(url, "train", max_open_parts=1)) == digests_of_all(open_cache(path, "train"))


def test_a_remote_cache_is_summed_up_alike(path: Path, url: str) -> None:
    local, remote = inspect_cache(path), inspect_cache(url)
    assert remote.url == url
    assert (remote.sizes.journal, local.sizes.journal) == (None, 0)
    assert remote.model_copy(update={"url": local.url, "sizes": local.sizes}) == local
    assert remote.sizes.model_copy(update={"journal": 0}) == local.sizes


def test_a_remote_file_that_is_damaged_or_missing_is_named(url: str) -> None:
    memory = fsspec.filesystem("memory")
    name = "/bucket/cache/parts/00001/targets.zarr/id/c/0"
    data = bytearray(memory.cat_file(name))
    data[5] ^= 1
    memory.pipe_file(name, bytes(data))
    with pytest.raises(CacheDamaged, match=r"parts/00001/targets\.zarr/id/c/0: .*does not match"):
        digests_of_all(open_cache(url))
    memory.rm_file(name)
    with pytest.raises(CacheDamaged, match=r"parts/00001/targets\.zarr/id/c/0: the file is missing"):
        digests_of_all(open_cache(url))
    memory.rm_file("/bucket/cache/index.parquet")
    memory.rm("/bucket/cache/parts/00003", recursive=True)
    with pytest.raises(CacheIncomplete, match="1 of 4 parts are missing"):
        open_cache(url)
    assert open_cache(url, allow_partial=True).sequences_by_part


def test_an_unreachable_address_gives_a_hint() -> None:
    for address, message, hint in [
        ("memory://nowhere", "no such folder: memory://nowhere", "give the URL that holds manifest.json"),
        ("martian://x/y", "fsspec cannot open martian://x/y", None),
        ("file:///nowhere/at/all", "no such folder: /nowhere/at/all", "give the folder that holds manifest.json"),
    ]:
        with pytest.raises(ConfigError, match=message) as refused:
            open_cache(address)
        assert refused.value.hint == hint


@pytest.mark.parametrize(
    ("address", "hint"),
    [
        ("s3://bucket/c", "pip install 'kdpipe[s3]'"),
        ("gs://bucket/c", "pip install 'kdpipe[gcs]'"),
        ("hf://datasets/a/b", "pip install 'kdpipe[hub]'"),
        ("oci://bucket/c", "install the fsspec driver for it"),
    ],
)
def test_a_missing_driver_names_its_extra(address: str, hint: str) -> None:
    with (
        mock.patch("fsspec.core.url_to_fs", side_effect=ImportError("no module named so")),
        pytest.raises(ConfigError, match="needs a library that is not installed: no module named so") as refused,
    ):
        open_cache(address)
    assert refused.value.hint == hint


def test_a_cache_opened_by_a_relative_path_outlives_a_change_of_folder(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    cache = open_cache("cache")
    monkeypatch.chdir(tmp_path)
    assert digests_of_all(cache) == digests_of_all(open_cache(path))
    rebuild, arguments = cache.__reduce__()
    assert digests_of_all(rebuild(*arguments)) == digests_of_all(cache)
