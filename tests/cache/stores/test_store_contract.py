"""Every store of the table keeps the contract: a folder, fsspec's memory and files, a web server, the hub."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from huggingface_hub import HfFileSystem, constants

from kdpipe.cache.stores.dispatch import OTHER, STORES, open_folder
from kdpipe.schemas.errors import ConfigError
from support import tiny
from support.hub import NAME, TOKEN, Hub, serving_hub
from support.store_contract import RemoteStoreContract, Served, StoreContract
from support.web import Site, serving


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small cache in a folder."""
    folder = tmp_path_factory.mktemp("contract") / "cache"
    with tiny.unsynced():
        tiny.make_cache(folder)
    return folder


def write_over(folder: Path) -> Callable[[str, bytes], None]:
    """Replace files of a folder, at a time of their own."""

    def replace(name: str, data: bytes) -> None:
        (folder / name).write_bytes(data)
        os.utime(folder / name, ns=(1, 1))

    return replace


def failing_reads(driver: type[Any], monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let a driver's next reads fail."""
    left, read = [0], driver.cat_file

    def cat_file(self: Any, *words: Any, **options: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise OSError("busy")
        return read(self, *words, **options)

    monkeypatch.setattr(driver, "cat_file", cat_file)
    return lambda n: left.__setitem__(0, n)


class TestLocalStore(StoreContract):
    scheme = "file"

    @pytest.fixture
    def served(self, path: Path, tmp_path: Path) -> Served:
        folder = shutil.copytree(path, tmp_path / "cache")
        return Served(url=str(folder), replace=write_over(folder))


class TestFileUrl(TestLocalStore):
    @pytest.fixture
    def served(self, path: Path, tmp_path: Path) -> Served:
        folder = shutil.copytree(path, tmp_path / "cache")
        return Served(url=folder.as_uri(), replace=write_over(folder))


class TestMemory(RemoteStoreContract):
    scheme = "memory"

    @pytest.fixture
    def served(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
        memory = fsspec.filesystem("memory")
        memory.put(str(path), "/contract/cache", recursive=True)
        fail = failing_reads(MemoryFileSystem, monkeypatch)
        yield Served(
            url="memory://contract/cache",
            replace=lambda name, data: memory.pipe_file(f"/contract/cache/{name}", data),
            fail=fail,
        )
        memory.rm("/contract", recursive=True)


class TestFsspecFiles(RemoteStoreContract):
    scheme = "local"

    @pytest.fixture
    def served(self, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Served:
        folder = shutil.copytree(path, tmp_path / "cache")
        fail = failing_reads(LocalFileSystem, monkeypatch)
        return Served(url=f"local://{folder}", replace=write_over(folder), fail=fail)


class TestHttp(RemoteStoreContract):
    scheme = "http"

    @pytest.fixture
    def served(self, path: Path, tmp_path: Path) -> Iterator[Served]:
        folder, until = shutil.copytree(path, tmp_path / "cache"), [0]
        site = Site(folder, status=lambda n: 503 if n <= until[0] else None)
        with serving(site) as url:
            yield Served(
                url=url,
                replace=write_over(folder),
                fail=lambda n: until.__setitem__(0, site.n_requests + n),
            )


class TestHub(RemoteStoreContract):
    scheme = "hf"

    @pytest.fixture
    def served(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
        hub = Hub()
        hub.commits.append(("1" * 40, {f"one/{name}": (path / name).read_bytes() for name in tiny.files_of(path)}))

        def replace(name: str, data: bytes) -> None:
            hub.commits.append(("2" * 40, {**hub.files, f"one/{name}": data}))

        with serving_hub(hub) as address:
            monkeypatch.setattr(constants, "ENDPOINT", address)
            template = address + "/{repo_id}/resolve/{revision}/{filename}"
            monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
            monkeypatch.setenv("HF_TOKEN", TOKEN)
            HfFileSystem.clear_instance_cache()
            fail = failing_reads(HfFileSystem, monkeypatch)
            yield Served(url=f"hf://datasets/{NAME}/one", replace=replace, fail=fail)
            HfFileSystem.clear_instance_cache()


def test_the_contract_covers_every_store_of_the_table() -> None:
    classes = (TestLocalStore, TestMemory, TestFsspecFiles, TestHttp, TestHub)
    assert {STORES.get(test.scheme, OTHER) for test in classes} == {*STORES.values(), OTHER}


@pytest.mark.parametrize("url", ["https://x.invalid/cache", "/tmp/cache"])
def test_a_store_that_is_only_read_is_not_opened_for_writing(url: str) -> None:
    with pytest.raises(ConfigError):
        open_folder(url)
