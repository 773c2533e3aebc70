"""Which files are repaired and which are not: bytes under other names, other caches, damage behind URLs and in
mirrors.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from kdpipe.cache import layout, open_cache
from kdpipe.cache.mirror import mirror as near
from kdpipe.cache.stores.addresses import MirrorSettings
from kdpipe.cache.stores.fsspec_store import RemoteFolder, RemoteStore
from kdpipe.cache.stores.http_store import HttpStore
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.cache.transfer import copy_cache
from kdpipe.cache.verify import verify_cache
from kdpipe.schemas.errors import CacheDamaged, ConfigError
from support import tiny
from support.reading import digests_of_all
from support.web import Site, serving

ID = "parts/00001/targets.zarr/id/c/0"


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(near, "_stores", {})
    with tiny.unsynced():
        yield


@pytest.fixture
def place() -> Iterator[str]:
    """A place behind a URL."""
    yield "memory://repaired/cache"
    fsspec.filesystem("memory").rm("/repaired", recursive=True)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the same settings whose parts were made by a machine that had less memory."""
    folder = tmp_path_factory.mktemp("other") / "cache"
    with tiny.unsynced():
        writer = tiny.begin_cache(folder)
        for number in writer.missing():
            with writer.part(number) as part:
                part.batches_halved = 1
                for sequence, block in tiny.part_of(tiny.SMALL, number):
                    part.add(sequence, block)
        writer.seal()
    return folder


@pytest.mark.parametrize("link", [os.symlink, os.link])
@pytest.mark.parametrize("size", ["whole", "short"])
def test_nothing_is_written_through_a_link(path: Path, tmp_path: Path, link: object, size: str) -> None:
    copy, elsewhere = tmp_path / "copy", tmp_path / "elsewhere"
    copy_cache(path, copy)
    data = (path / ID).read_bytes()
    wrong = data[:-1] + bytes([data[-1] ^ 1]) if size == "whole" else data[:-5]
    elsewhere.write_bytes(wrong)
    (copy / ID).unlink()
    link(elsewhere, copy / ID)  # type: ignore[operator]
    report = copy_cache(path, copy)
    assert report.repaired == (1,)
    assert elsewhere.read_bytes() == wrong
    assert not (copy / ID).is_symlink() and (copy / ID).read_bytes() == data
    assert verify_cache(copy, "full").ok


def test_a_link_to_a_table_is_replaced_by_the_table(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy_cache(path, copy)
    table = copy / "tables/ids_by_rank.bin"
    table.rename(tmp_path / "table")
    table.symlink_to(tmp_path / "table")
    copy_cache(path, copy)
    assert not table.is_symlink() and verify_cache(copy, "full").ok


def test_a_finished_cache_of_the_same_settings_is_not_replaced(path: Path, other: Path, tmp_path: Path) -> None:
    theirs, ours = open_cache(other).cache_id, open_cache(path).cache_id
    assert theirs != ours and open_cache(other).manifest == open_cache(path).manifest
    copy = tmp_path / "copy"
    copy_cache(other, copy)
    with pytest.raises(ConfigError, match=f"copy .*{theirs}.*{ours}"):
        copy_cache(path, copy)
    assert open_cache(copy).cache_id == theirs and verify_cache(copy, "full").ok


def test_a_copy_into_the_cache_itself_is_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match="inside the source"):
        copy_cache(path, path / "sub")


@pytest.mark.parametrize("name", [ID, "parts/00001/part.json", layout.INDEX, layout.MANIFEST, "tables/ids_by_rank.bin"])
def test_damage_behind_a_url_is_repaired_on_request(path: Path, place: str, name: str) -> None:
    copy_cache(path, place)
    memory = fsspec.filesystem("memory")
    data = memory.cat_file(f"/repaired/cache/{name}")
    memory.pipe_file(f"/repaired/cache/{name}", bytes([data[0] ^ 1]) + data[1:])
    report = copy_cache(path, place, repair=True)
    assert report.copied == (1 if name.startswith(layout.PARTS) else 0)
    assert memory.cat_file(f"/repaired/cache/{name}") == data
    assert verify_cache(place, "full").ok
    assert copy_cache(path, place, repair=True).copied == 0


@pytest.mark.parametrize("end", ["/id/c/0", "/part.json"])
def test_what_stage_one_wrote_there_is_repaired_in_place(path: Path, place: str, end: str) -> None:
    assert tiny.make_cache(place) == open_cache(path).cache_id
    memory = fsspec.filesystem("memory")
    before = memory.find("/repaired/cache")
    (name,) = (name for name in before if "/parts/00001/" in name and name.endswith(end))
    assert not any(one.endswith(ID) for one in before), "files of a part lie in the folder of an attempt"
    data = memory.cat_file(name)
    memory.pipe_file(name, data[:-1] + bytes([data[-1] ^ 1]))
    assert copy_cache(path, place, repair=True).copied == 1
    assert memory.cat_file(name) == data and memory.find("/repaired/cache") == before
    assert verify_cache(place, "full").ok


def test_a_file_that_is_too_short_there_is_damage(path: Path, place: str, tmp_path: Path) -> None:
    copy_cache(path, place)
    memory = fsspec.filesystem("memory")
    memory.pipe_file(f"/repaired/cache/{ID}", memory.cat_file(f"/repaired/cache/{ID}")[:-7])
    with pytest.raises(CacheDamaged, match=rf"{ID} has [\d,]+ bytes, expected at least [\d,]+"):
        copy_cache(place, tmp_path / "copy")
    with serving(Site(path)) as url:
        with pytest.raises(CacheDamaged, match=r"manifest.json has no bytes 1,048,576 to 2,097,152 at http"):
            HttpStore(url).read_range("manifest.json", 1 << 20, 2 << 20)
        with pytest.raises(CacheDamaged, match=r"manifest.json has [\d,]+ bytes, expected at least 1,048,576"):
            HttpStore(url).read_range("manifest.json", 10, 1 << 20)


def test_a_file_that_another_has_removed_is_gone(place: str) -> None:
    folder = RemoteFolder(place)
    folder.create("manifest.sig", b"x")
    folder.remove("manifest.sig")
    folder.remove("manifest.sig")
    folder.create("left", b"x")
    assert RemoteStore(place).names("") == ["left"]


@pytest.mark.slow
def test_caches_of_one_manifest_have_separate_mirrors(path: Path, other: Path, tmp_path: Path) -> None:
    for cache in (path, other):
        with serving(Site(cache)) as url:
            far = open_cache(url, mirror=MirrorSettings(folder=tmp_path, limit=1 << 30))
            assert digests_of_all(far) == digests_of_all(open_cache(cache))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.slow
def test_files_that_were_removed_from_the_mirror_are_fetched_again(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = MirrorSettings(folder=tmp_path, limit=1 << 30)
    with serving(Site(path)) as url:
        digests_of_all(open_cache(url, mirror=mirror))
        for file in tmp_path.glob(f"*/{ID}"):
            file.unlink()
        monkeypatch.setattr(near, "_stores", {})
        assert digests_of_all(open_cache(url, mirror=mirror)) == digests_of_all(open_cache(path))
        assert near.mirrored_store(url, mirror).n_fetched == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tables/ids_by_rank.bin", layout.MANIFEST])
@pytest.mark.parametrize("how", ["flip", "cut"])
def test_a_shared_file_that_was_damaged_in_the_mirror_is_reported_and_fetched_again(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, how: str
) -> None:
    mirror, reported = MirrorSettings(folder=tmp_path, limit=1 << 30), list[str]()
    retry_policy = RetryPolicy(report=reported.append)
    with serving(Site(path)) as url:
        open_cache(url, mirror=mirror, retry_policy=retry_policy)
        assert not reported  # a first fetch repairs nothing
        (file,) = tmp_path.glob(f"*/{name}")
        if how == "cut":
            os.truncate(file, file.stat().st_size - 1)
        else:
            tiny.flip_bit(file, 0)
        for _ in range(2):
            monkeypatch.setattr(near, "_stores", {})
            open_cache(url, mirror=mirror, retry_policy=retry_policy)
    assert len(reported) == 1 and name in reported[0] and str(file.parents[len(Path(name).parents) - 1]) in reported[0]
    assert file.read_bytes() == (path / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", [ID, "parts/00001/sequences.arrow", "parts/00001/part.json"])
def test_a_part_that_was_damaged_in_the_mirror_is_named_by_its_folder_and_fetched_again(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    mirror, reported = MirrorSettings(folder=tmp_path, limit=1 << 30), list[str]()
    with serving(Site(path)) as url:
        digests_of_all(open_cache(url, mirror=mirror))
        (file,) = tmp_path.glob(f"*/{name}")
        tiny.flip_bit(file, 100)
        monkeypatch.setattr(near, "_stores", {})
        cache = open_cache(url, mirror=mirror, retry_policy=RetryPolicy(report=reported.append))
        assert digests_of_all(cache) == digests_of_all(open_cache(path))
        assert near.mirrored_store(url, mirror).n_fetched == 1
    assert len(reported) == 1 and str(file.parents[len(Path(name).parents) - 1]) in reported[0] and url in reported[0]
    assert file.read_bytes() == (path / name).read_bytes()


def spoilt(folder: Path, name: str, how: str) -> Path:
    """A file of the mirror, damaged as a disk or another program does it."""
    (file,) = folder.glob(f"*/{name}")
    if how == "gone":
        file.unlink()
    elif how == "cut":  # another file of that name: what is mapped cannot be cut
        data = file.read_bytes()
        file.unlink()
        file.write_bytes(data[: len(data) // 2])
    else:
        tiny.flip_bit(file, 100)
    return file


ROW = "parts/00001/targets.zarr/row/c/0/0"
SPOILT = [(ID, "flip"), (ID, "cut"), (ID, "gone"), (ROW, "flip")]
SPOILT_AT_OPENING = [("parts/00001/sequences.arrow", "flip"), ("parts/00001/part.json", "flip")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "how", "reader"),
    [
        *((*spoilt, reader) for spoilt in SPOILT for reader in ("open", "closed", "another")),
        *((*spoilt, reader) for spoilt in SPOILT_AT_OPENING for reader in ("closed", "another")),
    ],
)
def test_damage_after_a_first_look_is_named_by_its_folder_and_fetched_again(
    path: Path, tmp_path: Path, name: str, how: str, reader: str
) -> None:
    mirror, reported = MirrorSettings(folder=tmp_path, limit=1 << 30), list[str]()
    with serving(Site(path)) as url:
        cache = open_cache(url, mirror=mirror, retry_policy=RetryPolicy(report=reported.append))
        if reader == "open":
            cache.part(1)  # its arrays are mapped when they are first read
        else:
            digests_of_all(cache)
        file = spoilt(tmp_path, name, how)
        if reader == "closed":
            cache.close_parts()
        cache = open_cache(url, mirror=mirror) if reader == "another" else cache
        assert digests_of_all(cache) == digests_of_all(open_cache(path))
        assert near.mirrored_store(url, mirror).n_fetched == len(cache.parts) + 1
    assert len(reported) == 1 and str(file.parents[len(Path(name).parents) - 1]) in reported[0] and url in reported[0]
    assert file.read_bytes() == (path / name).read_bytes()


@pytest.mark.slow
def test_a_chunk_that_is_damaged_while_it_is_mapped_is_read_again(path: Path, tmp_path: Path) -> None:
    """The bytes change under a reader that has them mapped: the checksum of a chunk finds it while it is decoded."""
    mirror, reported = MirrorSettings(folder=tmp_path, limit=1 << 30), list[str]()
    with serving(Site(path)) as url:
        cache = open_cache(url, mirror=mirror, retry_policy=RetryPolicy(report=reported.append))
        part = cache.part(1)
        for name in part.array_names:
            part.array(name)
        (file,) = tmp_path.glob(f"*/{ID}")
        place = file.stat().st_ino
        tiny.flip_bit(file, 100)
        assert file.stat().st_ino == place, "the file that is mapped was replaced"
        assert digests_of_all(cache) == digests_of_all(open_cache(path))
    assert len(reported) == 1 and str(tmp_path) in reported[0]
    assert file.read_bytes() == (path / ID).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("scanned", [True, False])
def test_threads_that_meet_one_damage_fetch_the_part_once(path: Path, tmp_path: Path, scanned: bool) -> None:
    mirror, reported = MirrorSettings(folder=tmp_path, limit=1 << 30), list[str]()
    with serving(Site(path)) as url:
        cache = open_cache(url, mirror=mirror, retry_policy=RetryPolicy(report=reported.append))
        digests_of_all(cache)
        n_fetched = near.mirrored_store(url, mirror).n_fetched
        for _ in range(10):
            tiny.flip_bit(next(tmp_path.glob(f"*/{ID}")), 100)
            cache.close_parts()
            read = (lambda: len(list(cache.scan()))) if scanned else (lambda: len(digests_of_all(cache)))
            with ThreadPoolExecutor(max_workers=6) as pool:
                assert len({future.result() for future in [pool.submit(read) for _ in range(6)]}) == 1
        assert near.mirrored_store(url, mirror).n_fetched == n_fetched + 10
    assert len(reported) == 10


@pytest.mark.slow
def test_a_table_that_is_damaged_in_the_mirror_is_fetched_again(path: Path, tmp_path: Path) -> None:
    mirror, reported = MirrorSettings(folder=tmp_path, limit=1 << 30), list[str]()
    with serving(Site(path)) as url:
        cache = open_cache(url, mirror=mirror, retry_policy=RetryPolicy(report=reported.append))
        file = spoilt(tmp_path, "tables/ids_by_rank.bin", "flip")
        assert (cache.table("ids_by_rank") == open_cache(path).table("ids_by_rank")).all()
        again = spoilt(tmp_path, "tables/ids_by_rank.bin", "cut")
        other = open_cache(url, mirror=mirror)
        assert digests_of_all(other) == digests_of_all(open_cache(path))
    assert len(reported) == 2 and str(file.parents[1]) in reported[0] and "tables" in reported[0] and file == again


@pytest.mark.slow
def test_damage_that_the_address_has_too_is_named_by_both_places(path: Path, tmp_path: Path) -> None:
    """It is noticed here first: what is there was replaced since it was fetched."""
    there, mirror = tiny.copy_cache(path, tmp_path / "there"), MirrorSettings(folder=tmp_path / "near", limit=1 << 30)
    with serving(Site(there)) as url:
        cache = open_cache(url, mirror=mirror)
        digests_of_all(cache)
        tiny.flip_bit(there / ID, 100)
        file = spoilt(tmp_path / "near", ID, "flip")
        cache.close_parts()
        with pytest.raises(CacheDamaged) as caught:
            digests_of_all(cache)
    assert str(file.parents[3]) in caught.value.message and url in str(caught.value)
