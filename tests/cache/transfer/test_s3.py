"""Copies to and from a real S3 server: the same bytes, safe for several at once, and no key of it in any word."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
import s3fs

from kdpipe.cache import layout, open_cache
from kdpipe.cache.fetch.file import Fetcher
from kdpipe.cache.stores import fsspec_store as remote
from kdpipe.cache.stores.fsspec_store import RemoteFolder, RemoteStore
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.cache.transfer import copy_cache
from kdpipe.cache.verify import verify_cache
from kdpipe.schemas.copy_report import PartSelection
from kdpipe.schemas.errors import CacheDamaged, CacheError, CacheWriteError, ConfigError, ConnectionFailed, KdpipeError
from kdpipe.schemas.reshape import Bounds
from support import tiny
from support.reading import digests_of_all
from support.s3 import KEY, SECRET, s3_server

pytestmark = pytest.mark.slow
COPY = "import sys; from kdpipe.cache.transfer import copy_cache; copy_cache(sys.argv[1], sys.argv[2])"
HASTY = RetryPolicy(budget=3.0, first=0.01, longest=0.02)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small cache in a folder, and an S3 server."""
    folder = tmp_path_factory.mktemp("s3") / "cache"
    with tiny.unsynced(), s3_server() as environment, pytest.MonkeyPatch.context() as patch:
        tiny.make_cache(folder)
        for name, value in environment.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield folder
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def bucket(path: Path, request: pytest.FixtureRequest) -> str:
    """A bucket of the test's own."""
    name = f"bucket-{abs(hash(request.node.name)) % 10**9}"
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}/caches/one"


def names_of(url: str) -> list[str]:
    system, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    return sorted(name.removeprefix(f"{root}/") for name in system.find(root))


def test_a_cache_goes_to_a_bucket_and_back(path: Path, bucket: str, tmp_path: Path) -> None:
    report = copy_cache(path, bucket)
    assert names_of(bucket) == [name for name in tiny.files_of(path) if not name.startswith(layout.JOURNAL)]
    assert digests_of_all(open_cache(bucket)) == digests_of_all(open_cache(path))
    assert verify_cache(bucket, "full").ok
    copy_cache(bucket, tmp_path / "back")
    assert tiny.digests_of(tmp_path / "back") == {
        name: digest for name, digest in tiny.digests_of(path).items() if not name.startswith(layout.JOURNAL)
    }
    assert (report.cache_id, report.copied) == (open_cache(path).cache_id, report.parts)
    again = copy_cache(path, bucket)
    assert (again.copied, again.bytes) == (0, 0)
    copy_cache(bucket, f"{bucket}-two")
    assert names_of(f"{bucket}-two") == names_of(bucket)


def test_a_smaller_cache_goes_from_a_bucket_to_a_bucket_and_to_a_folder(
    path: Path, bucket: str, tmp_path: Path
) -> None:
    copy_cache(path, bucket)
    lean = PartSelection(parts=Bounds(first=1), without=("hidden",))
    copy_cache(bucket, f"{bucket}-lean", selection=lean)
    copy_cache(bucket, tmp_path / "lean", selection=lean)
    assert names_of(f"{bucket}-lean") == tiny.files_of(tmp_path / "lean")
    assert open_cache(f"{bucket}-lean").cache_id == open_cache(tmp_path / "lean").cache_id
    assert digests_of_all(open_cache(f"{bucket}-lean")) == digests_of_all(open_cache(tmp_path / "lean"))
    assert copy_cache(path, f"{bucket}-lean", selection=lean).bytes == 0
    with pytest.raises(ConfigError, match="selection: existing 'parts 1:; without hidden', requested 'parts 1:'"):
        copy_cache(path, f"{bucket}-lean", selection=PartSelection(parts=Bounds(first=1)))


def test_a_part_whose_sending_was_cut_off_is_not_there_and_is_sent_again(
    path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, sent = RemoteFolder.put, []

    def failing(self: RemoteFolder, name: str, file: Path) -> None:
        if len(sent) == 12:
            raise CacheError("the cable was cut")
        sent.append(name)
        put(self, name, file)

    with monkeypatch.context() as patched:
        patched.setattr(RemoteFolder, "put", failing)
        with pytest.raises(CacheError, match="the cable was cut"):
            copy_cache(path, bucket)
    assert f"{layout.INDEX}" not in names_of(bucket)
    for number in range(len(open_cache(path).parts)):
        folder = layout.part_dir(number)
        if f"{folder}/{layout.PART_RECORD}" in names_of(bucket):
            assert set(RemoteFolder(bucket).walk(folder)) == {
                name for name in tiny.files_of(path) if name.startswith(f"{folder}/")
            }
    copy_cache(path, bucket)
    assert verify_cache(bucket, "full").ok


def test_several_may_send_at_once(path: Path, bucket: str) -> None:
    words = [sys.executable, "-c", COPY, str(path), bucket]
    children = [subprocess.Popen(words) for _ in range(3)]
    assert [child.wait(900) for child in children] == [0, 0, 0]
    assert verify_cache(bucket, "full").ok


def test_a_url_with_another_cache_is_left_alone(path: Path, bucket: str) -> None:
    place = RemoteFolder(bucket)
    assert place.create(layout.MANIFEST, b"{}")
    with pytest.raises(ConfigError, match="holds another cache"):
        copy_cache(path, bucket)
    place.remove(layout.MANIFEST)
    place.create("parts/00000/part.json", b"{}")
    with pytest.raises(CacheWriteError, match=r"part.json"):
        copy_cache(path, bucket)


def test_a_bucket_that_does_not_exist_is_reported(path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot write to s3://mistyped/cache") as caught:
        copy_cache(path, "s3://mistyped/cache", retry_policy=HASTY)
    assert caught.value.hint == "check the URL, or create the bucket first"


def test_what_is_damaged_there_is_noticed_on_the_way_back(path: Path, bucket: str, tmp_path: Path) -> None:
    copy_cache(path, bucket)
    spoilt = tmp_path / "spoilt"
    data = (path / "parts/00001/sequences.arrow").read_bytes()
    spoilt.write_bytes(data[:-1] + b"?")
    RemoteFolder(bucket).put("parts/00001/sequences.arrow", spoilt)
    with pytest.raises(CacheDamaged, match=r"00001/sequences.arrow .* 3 times, at s3://"):
        copy_cache(bucket, tmp_path / "copy", retry_policy=HASTY)
    assert not (tmp_path / "copy/parts/00001").exists()


def test_an_object_that_is_replaced_while_it_is_read_starts_over(path: Path, bucket: str, tmp_path: Path) -> None:
    name = "parts/00001/sequences.arrow"
    copy_cache(path, bucket)
    other = tmp_path / "other"
    other.write_bytes(bytes((path / name).stat().st_size))

    class Moving(RemoteStore):
        n_pieces = 0

        def read_range(self, name: str, begin: int, end: int, tag: str | None = None) -> bytes:
            Moving.n_pieces += 1
            if Moving.n_pieces in (2, 4):
                RemoteFolder(bucket).put(name, other if Moving.n_pieces == 2 else path / name)
            return super().read_range(name, begin, end, tag)

    heard: list[str] = []
    record = open_cache(path).part(1).record.files["sequences.arrow"]
    Fetcher(store=Moving(bucket), piece_bytes=1000, report=heard.append).fetch(name, record, tmp_path / "file")
    assert heard == [f"{name} was replaced while it was read; downloading it again"] * 2
    assert (tmp_path / "file").read_bytes() == (path / name).read_bytes()


@pytest.mark.parametrize("fault", ["no bucket", "no server", "wrong key"])
def test_what_fails_is_reported_without_a_key(
    path: Path, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(error: KdpipeError) -> str:
        return f"{error.message} {error.hint} {capsys.readouterr()}"

    s3fs.S3FileSystem.clear_instance_cache()
    if fault == "no server":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    if fault == "wrong key":
        monkeypatch.setattr(remote, "_driver", lambda _: (_Refusing(), "bucket"))
    with pytest.raises((CacheError, ConfigError)) as caught:
        copy_cache("s3://no-such-bucket/cache", tmp_path / "copy", retry_policy=HASTY)
    reported = shown(caught.value)
    assert KEY not in reported and SECRET not in reported
    if fault == "no server":
        assert isinstance(caught.value, ConnectionFailed)
    s3fs.S3FileSystem.clear_instance_cache()


class _Refusing:
    """A driver whose errors repeat what it was given."""

    def isdir(self, _: str) -> bool:
        raise PermissionError(
            f"SignatureDoesNotMatch for {KEY} with {SECRET} at https://me:{SECRET}@host?token={SECRET}"
        )


@pytest.mark.parametrize("n_parts", [1, 4, 16])
def test_a_verification_makes_no_more_requests_than_a_copy(
    n_parts: int, path: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.make_cache(tmp_path / "cache", replace(tiny.SMALL, documents={"train": 4 * n_parts}))
    assert len(open_cache(tmp_path / "cache").parts) == n_parts
    copy_cache(tmp_path / "cache", bucket)
    real, requested = s3fs.S3FileSystem._call_s3, list[str]()

    async def counted(self: object, method: str, *words: object, **options: object) -> object:
        requested.append(method)
        return await real(self, method, *words, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    copy_cache(bucket, tmp_path / "copy")
    n_copied = len(requested)
    for level in ("fast", "full"):
        requested.clear()
        assert verify_cache(bucket, level).ok  # type: ignore[arg-type]
        assert 0 < len(requested) <= n_copied, level
        assert requested.count("list_objects_v2") <= 2, level


STRAY = {"notes.txt", "tables/more.bin", "parts/00009/part.json", "parts/00001/more", "journal/x"}
LOST = {layout.INDEX, "tables/ids_by_rank.bin", "parts/00001/part.json", "parts/00002/text.arrow", layout.MANIFEST}


@pytest.mark.parametrize("name", sorted(STRAY | LOST))
def test_what_is_wrong_in_a_bucket_is_named_as_it_is_in_a_folder(
    name: str, path: Path, bucket: str, tmp_path: Path
) -> None:
    copy_cache(path, bucket)
    copy_cache(path, tmp_path / "here")
    if name in STRAY:
        (tmp_path / "here" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "here" / name).write_bytes(b"{}")
        RemoteFolder(bucket).put(name, tmp_path / "here" / name)
    else:
        (tmp_path / "here" / name).unlink()
        RemoteFolder(bucket).remove(name)
    named = {problem.file for problem in verify_cache(bucket, "full").problems}
    expected = {problem.file for problem in verify_cache(tmp_path / "here", "full").problems}
    # A part in a bucket is there once its record is: without it the part is missing as a whole.
    expected = {"parts/00001" if file == "parts/00001/part.json" and name in LOST else file for file in expected}
    assert named == expected and named
