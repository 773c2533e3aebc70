"""Verifying a cache behind a URL: no more requests than a copy, several at once, every damage named."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from kdpipe.cache import layout
from kdpipe.cache.opening import open_cache
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.cache.transfer import copy_cache
from kdpipe.cache.verify import remote_parts, verify_cache
from kdpipe.schemas.errors import CacheWriteError
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.part import PartRecord
from kdpipe.schemas.verify_report import Problem
from support import tiny
from support.web import Site, serving


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small cache in a folder."""
    folder = tmp_path_factory.mktemp("verify_remote") / "cache"
    with tiny.unsynced():
        tiny.make_cache(folder)
    return folder


@pytest.fixture(autouse=True)
def unsynced() -> Iterator[None]:
    with tiny.unsynced():
        yield


@pytest.mark.slow
@pytest.mark.parametrize("level", ["fast", "full", "deep"])
def test_a_verification_makes_no_more_requests_than_a_copy_and_several_at_once(
    level: str, path: Path, tmp_path: Path
) -> None:
    copied, verified = Site(path, seconds=0.005), Site(path, seconds=0.005)
    with serving(copied) as url:
        copy_cache(url, tmp_path / "copy")
    with serving(verified) as url:
        report = verify_cache(url, level)  # type: ignore[arg-type]
    assert report.ok and report == verify_cache(path, level)  # type: ignore[arg-type]
    assert verified.n_requests <= copied.n_requests
    assert verified.most_under_way > 1


DAMAGE = ["flip", "cut", "longer", "gone"]
NAMES = [
    "parts/00001/targets.zarr/id/c/0",
    "parts/00001/sequences.arrow",
    "parts/00002/part.json",
    "tables/ids_by_rank.bin",
    layout.INDEX,
    layout.MANIFEST,
]


# Without a manifest there is no cache at an address, without an index a web server does not say which parts it has.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "how"),
    [
        (name, how)
        for name in NAMES
        for how in DAMAGE
        if (name, how) not in {(layout.MANIFEST, "gone"), (layout.INDEX, "gone")}
    ],
)
def test_damage_behind_a_web_server_is_named(name: str, how: str, path: Path, tmp_path: Path) -> None:
    spoilt = tiny.copy_cache(path, tmp_path / "spoilt")
    if how == "flip":
        tiny.flip_bit(spoilt / name, 100)
    elif how == "cut":
        os.truncate(spoilt / name, (spoilt / name).stat().st_size - 1)
    elif how == "longer":
        with (spoilt / name).open("ab") as file:
            file.write(b"x")
    else:
        (spoilt / name).unlink()
    with serving(Site(spoilt)) as url:
        report = verify_cache(url, "full", RetryPolicy(budget=0))
    assert not report.ok
    assert name in {problem.file for problem in report.problems}


@pytest.mark.slow
@pytest.mark.parametrize("level", ["full", "deep"])
def test_files_of_a_verification_do_not_stay_and_faults_are_gone_through(
    level: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    retry_policy = replace(RetryPolicy(), first=0.001, longest=0.002)
    site = Site(path, due=lambda n: ("drop", "503", "other bytes")[n % 3] if n % 5 == 4 and n > 4 else None)
    with serving(site) as url:
        assert verify_cache(url, level, retry_policy).ok  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["parts/00001/sequences.arrow", "tables/ids_by_rank.bin", "parts/00003/part.json"])
def test_damage_is_named_at_the_deep_level_as_it_is_in_a_folder(name: str, path: Path, tmp_path: Path) -> None:
    spoilt = tiny.copy_cache(path, tmp_path / "spoilt")
    tiny.flip_bit(spoilt / name, 100)
    with serving(Site(spoilt)) as url:
        report = verify_cache(url, "deep", RetryPolicy(budget=0))
    here = verify_cache(spoilt, "deep")
    assert not report.ok
    assert {problem.file for problem in report.problems} == {problem.file for problem in here.problems}


@pytest.mark.slow
def test_parts_are_decoded_one_by_one_where_there_is_room_for_no_more(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    manifest = open_cache(path).manifest
    records = [open_cache(path).part(number).record for number in range(4)]
    least = remote_parts.free_bytes(tmp_path, manifest, records)
    tables = sum(table.n_bytes for table in manifest.tables)
    free = tables + max(record.n_bytes for record in records) + remote_parts.SPARE_BYTES
    assert least == shutil.disk_usage(tmp_path).free - tables - remote_parts.SPARE_BYTES
    most = []
    fetched = remote_parts.RemoteParts._download

    def bring(self: remote_parts.RemoteParts, manifest: Manifest, record: PartRecord, folder: Path) -> list[Problem]:
        most.append(len(list((folder / layout.PARTS).glob("*"))))
        return fetched(self, manifest, record, folder)

    monkeypatch.setattr(remote_parts.RemoteParts, "_download", bring)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    reported = list[str]()
    site = Site(path)
    with serving(site) as url:
        assert verify_cache(url, "deep", replace(RetryPolicy(), report=reported.append)).ok
        n_requests = site.n_requests
        assert most == [0, 0, 0, 0]
        assert len(reported) == 1 and f"{remote_parts.most_at_once(manifest, records):,} bytes" in reported[0]
        free -= 1
        with pytest.raises(CacheWriteError) as refused:
            verify_cache(url, "deep")
    assert f"{free:,} bytes free, {free + 1:,} needed" in refused.value.message
    assert "TMPDIR" in str(refused.value.hint)
    assert site.n_requests - n_requests < n_requests / 2, "no part is fetched"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_cache_in_memory_is_verified_at_the_deep_level(path: Path) -> None:
    url = "memory://verify-deep/cache"
    copy_cache(path, url)
    assert verify_cache(url, "deep").ok
