"""Copies between folders, memory and web servers: whole or absent, resumed, repaired, refused."""

import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import httpx
import pytest

from kdpipe.cache import layout, open_cache
from kdpipe.cache.durable.work_names import work_name
from kdpipe.cache.fetch import file as fetching
from kdpipe.cache.fetch.file import Fetcher
from kdpipe.cache.fetch.receiver import Receiver
from kdpipe.cache.stores import http_store as http
from kdpipe.cache.stores.local_store import LocalStore
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.cache.transfer import copy_cache, copying
from kdpipe.cache.verify import verify_cache
from kdpipe.schemas.errors import CacheDamaged, CacheError, CacheIncomplete, CacheWriteError, ConfigError, Unreachable
from support import tiny
from support.reading import digests_of_all
from support.recording import RecordingProgress
from support.web import FAULTS, Fault, Site, serving

HASTY = RetryPolicy(budget=5.0, first=0.001, longest=0.002)


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(http, "TIMEOUT", httpx.Timeout(0.5))
    with tiny.unsynced():
        yield


def assert_same(copy: Path, path: Path) -> None:
    due = {name: digest for name, digest in tiny.digests_of(path).items() if not name.startswith(layout.JOURNAL)}
    assert tiny.digests_of(copy) == due
    assert not (copy / layout.WORK).exists()
    assert verify_cache(copy, "full").ok


def test_a_copy_of_a_folder_is_the_cache_byte_for_byte(path: Path, tmp_path: Path) -> None:
    progress = RecordingProgress()
    report = copy_cache(path, tmp_path / "copy", progress=progress)
    assert_same(tmp_path / "copy", path)
    cache = open_cache(path)
    assert (report.cache_id, report.parts, report.copied) == (cache.cache_id, len(cache.parts), len(cache.parts))
    task = progress.tasks["copy"]
    assert task.total is not None and task.total >= sum(row.n_bytes for row in cache.parts)
    assert progress.updates["copy"][-1].done == report.bytes and not progress.open_tasks


@pytest.mark.slow
def test_a_copy_from_memory_and_from_the_web_is_the_same(path: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(path), "/from/cache", recursive=True)
    copy_cache("memory://from/cache", tmp_path / "one")
    memory.rm("/from", recursive=True)
    with serving(Site(path)) as url:
        copy_cache(url, tmp_path / "two")
        assert digests_of_all(open_cache(url)) == digests_of_all(open_cache(path))
        assert verify_cache(url, "full").ok
    assert_same(tmp_path / "one", path)
    assert_same(tmp_path / "two", path)


def test_a_second_copy_moves_what_is_missing_or_damaged_and_nothing_else(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy_cache(path, copy)
    assert copy_cache(path, copy).bytes == 0
    tiny.flip_bit(copy / "parts/00001/sequences.arrow", 1000)
    (copy / "parts/00002/targets.zarr/id/c/0").unlink()
    site, progress = Site(path), RecordingProgress()
    with serving(site) as url:
        report = copy_cache(url, copy, progress=progress)
    assert (report.copied, report.repaired) == (2, (1, 2))
    read = {what.split()[0] for what in site.requested if "Range" in what or "bytes=" in what}
    assert read == {"/parts/00001/sequences.arrow", "/parts/00002/targets.zarr/id/c/0"}
    assert [reported for reported in progress.messages if reported.startswith("part 1 is damaged")]
    assert_same(copy, path)


@pytest.mark.parametrize("name", [layout.MANIFEST, layout.INDEX, "tables/ids_by_rank.bin"])
@pytest.mark.parametrize("how", ["damaged", "gone"])
def test_files_of_the_whole_cache_are_repaired(path: Path, tmp_path: Path, name: str, how: str) -> None:
    copy = tmp_path / "copy"
    copy_cache(path, copy)
    if how == "gone":
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(b"?" + (copy / name).read_bytes()[1:])
    copy_cache(path, copy)
    assert_same(copy, path)


QUICK = ("drop", "wrong range")
# Of the requests that read bytes: the manifest comes first.
INDEX_READ = 2


@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=() if fault in QUICK else pytest.mark.slow) for fault in FAULTS]
)
def test_a_fault_is_survived(path: Path, tmp_path: Path, fault: Fault) -> None:
    site = Site(path, due=lambda n: fault if n % 7 == 5 else None)
    with serving(site) as url:
        copy_cache(url, tmp_path / "copy", retry_policy=HASTY)
    assert_same(tmp_path / "copy", path)


@pytest.mark.parametrize("n", [pytest.param(n, marks=() if n == INDEX_READ else pytest.mark.slow) for n in range(1, 6)])
def test_records_that_come_with_other_bytes_once_are_read_again(path: Path, tmp_path: Path, n: int) -> None:
    site = Site(path, due=lambda request: "other bytes" if request == n else None)
    with serving(site) as url:
        copy_cache(url, tmp_path / "copy", retry_policy=HASTY)
    assert_same(tmp_path / "copy", path)


def test_an_invalid_signature_is_not_copied(path: Path, tmp_path: Path) -> None:
    spoilt = tiny.copy_cache(path, tmp_path / "spoilt")
    (spoilt / layout.SIGNATURE).write_bytes(b"no signature")
    with pytest.raises(CacheDamaged, match=r"manifest.sig"):
        copy_cache(spoilt, tmp_path / "copy")


PIECES = 1000
NAME = "parts/00000/sequences.arrow"


def fetched(url: str, path: Path, file: Path, on_restart: list[str] | None = None) -> None:
    """Fetch a file of several pieces."""
    record = open_cache(path).locate(0)[0].record.files["sequences.arrow"]
    assert record.bytes > 3 * PIECES
    counted: list[int] = []
    heard = on_restart if on_restart is not None else []
    fetcher = Fetcher(
        store=http.HttpStore(url),
        retry_policy=HASTY,
        piece_bytes=PIECES,
        report=heard.append,
        on_restart=lambda: counted.append(1),
    )
    fetcher.fetch(NAME, record, file)
    assert len(counted) == len(heard)
    assert file.read_bytes() == (path / NAME).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("weak", [False, True])
@pytest.mark.parametrize("conditions", [False, True])
def test_a_file_that_is_replaced_while_it_is_read_starts_over(
    path: Path, tmp_path: Path, conditions: bool, weak: bool
) -> None:
    site = Site(path, due=lambda n: "changed" if n == 3 else None, conditions=conditions, weak=weak)
    heard: list[str] = []
    with serving(site) as url:
        fetched(url, path, tmp_path / "file", heard)
    assert heard == [f"{NAME} was replaced while it was read; downloading it again"]
    assert [requested.rpartition("bytes=")[2] for requested in site.requested[:4]] == [
        "0-999",
        "1000-1999",
        "2000-2999",
        "0-999",
    ]
    assert all((tag is None) == weak for tag in site.demanded)
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_a_file_that_is_replaced_again_and_again_is_reported(path: Path, tmp_path: Path) -> None:
    site = Site(path, due=lambda n: "changed" if n % 2 == 0 else None)
    reported = rf"{NAME} was replaced while it was read, 3 times, at http"
    with serving(site) as url, pytest.raises(Unreachable, match=reported) as caught:
        fetched(url, path, tmp_path / "file")
    assert caught.value.exit_code == 75
    assert not (tmp_path / "file").exists() and not (tmp_path / "file.tag").exists()


def test_a_local_file_that_is_replaced_while_it_is_read_starts_over(path: Path, tmp_path: Path) -> None:
    place = tiny.copy_cache(path, tmp_path / "place")

    class Moving(LocalStore):
        n_pieces = 0

        def read_range(self, name: str, begin: int, end: int, tag: str | None = None) -> bytes:
            Moving.n_pieces += 1
            if Moving.n_pieces == 2:
                (place / "new").write_bytes((place / name).read_bytes())
                (place / "new").replace(place / name)
            return super().read_range(name, begin, end, tag)

    record = open_cache(path).locate(0)[0].record.files["sequences.arrow"]
    heard: list[str] = []
    Fetcher(store=Moving(place), piece_bytes=PIECES, report=heard.append).fetch(NAME, record, tmp_path / "file")
    assert heard == [f"{NAME} was replaced while it was read; downloading it again"]
    assert (tmp_path / "file").read_bytes() == (path / NAME).read_bytes()


def test_files_that_started_over_are_counted(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "PIECE_BYTES", PIECES)
    site, progress = Site(path, due=lambda n: "changed" if n in (30, 50) else None), RecordingProgress()
    with serving(site) as url:
        report = copy_cache(url, tmp_path / "copy", retry_policy=HASTY, progress=progress)
    again = [reported for reported in progress.messages if reported.endswith("downloading it again")]
    assert report.redownloaded == len(again) and 1 <= len(again) <= 2
    assert progress.updates["copy"][-1].done == report.bytes
    assert_same(tmp_path / "copy", path)


def random_faults(seed: int) -> list[Fault | None]:
    """A schedule: some faults, then honesty, so that a copy can finish; a few schedules never end."""
    rng = random.Random(seed)
    rate = rng.choice([0.05, 0.2, 0.5])
    kinds = [fault for fault in FAULTS if fault != "stall" or rng.random() < 0.1]
    faults: list[Fault | None] = [rng.choice(kinds) if rng.random() < rate else None for _ in range(rng.randrange(200))]
    return faults


def copy_through(seed: int, path: Path, copy: Path) -> None:
    """Copy under a schedule of faults: what has its name is right at any time, and the copy finishes in the end."""
    faults = random_faults(seed)
    site = Site(path, due=lambda n: faults[n - 1] if n <= len(faults) else None)
    with serving(site) as url:
        for _ in range(50):
            try:
                copy_cache(url, copy, retry_policy=HASTY)
                break
            except (CacheDamaged, Unreachable):
                assert_committed_is_right(copy, path)
    assert_same(copy, path)


def assert_committed_is_right(copy: Path, path: Path) -> None:
    for name, digest in tiny.digests_of(copy).items() if copy.exists() else ():
        assert tiny.digests_of(path)[name] == digest, name


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(50))
def test_nothing_wrong_is_committed_whatever_fails(
    path: Path, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if seed % 2:  # files of many pieces, each of which may be of another version
        monkeypatch.setattr(fetching, "PIECE_BYTES", PIECES)
    copy_through(seed, path, tmp_path / "copy")


@pytest.mark.soak
def test_nothing_wrong_is_committed_under_five_hundred_schedules(path: Path, tmp_path: Path) -> None:
    for seed in range(50, 550):
        copy_through(seed, path, tmp_path / str(seed))


def test_a_server_that_never_recovers_is_reported_in_the_end(path: Path, tmp_path: Path) -> None:
    progress = RecordingProgress()
    reported = r"answers 503 Service Unavailable; retried for \d+ s"
    site, short = Site(path, due=lambda n: "503" if n > 4 else None), RetryPolicy(budget=0.05, first=0.001)
    with serving(site) as url, pytest.raises(Unreachable, match=reported) as caught:
        copy_cache(url, tmp_path / "copy", retry_policy=short, progress=progress)
    assert caught.value.exit_code == 75
    assert "run the same command again" in str(caught.value.hint)
    assert [reported for reported in progress.messages if "; retrying in " in reported]


def test_bytes_that_never_come_right_are_reported_by_name(path: Path, tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt"
    tiny.copy_cache(path, spoilt)
    tiny.flip_bit(spoilt / "parts/00001/sequences.arrow", 1000)
    with pytest.raises(CacheDamaged, match=r"parts/00001/sequences.arrow .* 3 times") as caught:
        copy_cache(spoilt, tmp_path / "copy")
    assert "kdpipe cache verify" in str(caught.value.hint)
    assert not (tmp_path / "copy/parts/00001").exists() and not (tmp_path / "copy" / layout.INDEX).exists()
    copy_cache(path, tmp_path / "copy")
    assert_same(tmp_path / "copy", path)


def test_a_file_resumes_where_it_was_interrupted(path: Path, tmp_path: Path) -> None:
    name = "parts/00000/sequences.arrow"
    whole = (path / name).read_bytes()
    record = open_cache(path).locate(0)[0].record.files["sequences.arrow"]
    site = Site(path, due=lambda n: "503" if n == 3 else None)
    with serving(site) as url:
        fetcher = Fetcher(store=http.HttpStore(url), retry_policy=RetryPolicy(budget=0), piece_bytes=1000)
        with pytest.raises(Unreachable):
            fetcher.fetch(name, record, tmp_path / "file")
        assert (tmp_path / "file").read_bytes() == whole[:2000]
        fetcher.fetch(name, record, tmp_path / "file")
        assert site.requested[3].endswith("bytes=2000-2999")
    assert (tmp_path / "file").read_bytes() == whole
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_a_file_that_was_replaced_in_the_source_starts_over(path: Path, tmp_path: Path) -> None:
    name = "parts/00000/sequences.arrow"
    record = open_cache(path).locate(0)[0].record.files["sequences.arrow"]
    (tmp_path / "file").write_bytes(b"x" * 2000)
    (tmp_path / "file.tag").write_text("another")
    site = Site(path)
    heard: list[str] = []
    with serving(site) as url:
        Fetcher(store=http.HttpStore(url), piece_bytes=1000, report=heard.append).fetch(name, record, tmp_path / "file")
    assert site.requested[0].endswith("bytes=0-999")
    assert heard == [f"{name} was replaced since its download began; downloading it again"]


def test_a_killed_copy_is_resumed(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    child = os.fork()
    if not child:
        fetch = Fetcher.fetch

        def dying(self: Fetcher, name: str, *words: object) -> None:
            if name == "parts/00001/sequences.arrow":
                os.kill(os.getpid(), 9)
            fetch(self, name, *words)  # type: ignore[arg-type]

        Fetcher.fetch = dying  # type: ignore[method-assign]
        copying.LOCAL_PARTS = 1  # type: ignore[misc]
        copy_cache(path, copy)
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == 9
    assert (copy / "parts/00000").is_dir() and not (copy / layout.INDEX).exists()
    assert_committed_is_right(copy, path)
    report = copy_cache(path, copy)
    assert report.copied == report.parts - 1
    assert_same(copy, path)


def test_an_index_that_was_half_written_is_written_again(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy_cache(path, copy)
    (copy / layout.INDEX).unlink()
    left = copy / layout.WORK / work_name(layout.INDEX)
    left.mkdir(parents=True)
    (left / layout.INDEX).write_bytes(b"half")
    copy_cache(path, copy)
    assert_same(copy, path)


def test_two_copies_into_one_folder_do_not_interfere(path: Path, tmp_path: Path) -> None:
    children = []
    for _ in range(2):
        child = os.fork()
        if not child:
            code = 1
            try:
                copy_cache(path, tmp_path / "copy")
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    copy_cache(path, tmp_path / "copy")
    assert_same(tmp_path / "copy", path)


def test_a_part_that_another_copy_finished_first_stays_with_its_readers(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy_cache(path, copy)
    row = open_cache(path).parts[1]
    before = {file: file.stat().st_ino for file in (copy / "parts/00001").rglob("*")}
    manifest = (path / layout.MANIFEST).read_bytes()
    fetcher = Fetcher(store=LocalStore(path))
    receiver = Receiver(copy, open_cache(path).manifest, manifest, fetcher)
    receiver.take_part(1, row)
    receiver.tidy()
    assert {file: file.stat().st_ino for file in (copy / "parts/00001").rglob("*")} == before
    assert_same(copy, path)


def test_a_folder_of_something_else_is_left_alone(path: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("my own")
    with pytest.raises(ConfigError, match=r"manifest.json: thesis.txt"):
        copy_cache(path, tmp_path / "full")
    other = tmp_path / "other"
    tiny.make_cache(other, replace(tiny.SMALL, seed=9))
    with pytest.raises(ConfigError, match="other holds another cache: the tokenizer"):
        copy_cache(path, other)
    with pytest.raises(ConfigError, match="inside the source"):
        copy_cache(path, path)


def test_a_disk_without_room_is_reported_before_anything_is_copied(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "SPARE_BYTES", 1 << 60)
    with pytest.raises(CacheWriteError, match=r"copy: [\d,]+ bytes free, [\d,]+ needed") as caught:
        copy_cache(path, tmp_path / "copy")
    assert "--parts" in str(caught.value.hint)
    assert not (tmp_path / "copy/parts").exists()


def test_an_unfinished_cache_is_copied_on_request(path: Path, tmp_path: Path) -> None:
    unfinished = tiny.copy_cache(path, tmp_path / "unfinished")
    (unfinished / layout.INDEX).unlink()
    (unfinished / "parts/00001").rename(tmp_path / "away")
    with pytest.raises(CacheIncomplete, match="is unfinished: 1 of"):
        copy_cache(unfinished, tmp_path / "copy")
    report = copy_cache(unfinished, tmp_path / "copy", allow_partial=True)
    assert (report.cache_id, report.copied) == (None, len(open_cache(path).parts) - 1)
    assert not (tmp_path / "copy" / layout.INDEX).exists()
    (tmp_path / "away").rename(unfinished / "parts/00001")
    assert copy_cache(unfinished, tmp_path / "copy", allow_partial=True).copied == 1
    silent = pytest.raises(CacheError, match="a web server has no list of parts")
    with serving(Site(unfinished)) as url, silent:
        copy_cache(url, tmp_path / "web", allow_partial=True)


@pytest.mark.parametrize(
    ("address", "reported"),
    [
        ("https://me:hunter2hunter2@host/cache", "the URL at https://host contains a user name or password"),
        ("s3://bucket/cache?X-Amz-Signature=hunter2hunter2", "the URL at s3://bucket contains a query"),
    ],
)
def test_an_address_with_a_key_in_it_is_refused_without_repeating_it(
    address: str, reported: str, tmp_path: Path
) -> None:
    for source, target in ((address, tmp_path / "copy"), (tmp_path, address)):
        with pytest.raises(ConfigError, match="contains") as caught:
            copy_cache(source, target)
        assert caught.value.message.startswith(reported)
        assert "hunter2" not in caught.value.message + str(caught.value.hint)
