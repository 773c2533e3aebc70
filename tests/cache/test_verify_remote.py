"""Verifying a cache behind a URL: no more requests than a copy, several at once, every damage named."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kdpipe.cache import layout
from kdpipe.cache.retries import Patience
from kdpipe.cache.transfer import copy_cache
from kdpipe.cache.verify import verify_cache
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
@pytest.mark.parametrize("level", ["fast", "full"])
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
        report = verify_cache(url, "full", Patience(budget=0))
    assert not report.ok
    assert name in {problem.file for problem in report.problems}


@pytest.mark.slow
def test_files_of_a_verification_do_not_stay_and_faults_are_gone_through(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    patience = replace(Patience(), first=0.001, longest=0.002)
    site = Site(path, due=lambda n: ("drop", "503", "other bytes")[n % 3] if n % 5 == 4 and n > 4 else None)
    with serving(site) as url:
        assert verify_cache(url, "full", patience).ok
    assert not list(tmp_path.iterdir())
