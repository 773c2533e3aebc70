"""Caches written to a URL: same content as in a folder, and a part is committed with its record."""

import re
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from kdpipe.cache import layout, open_cache
from kdpipe.cache.parts.tokenizer_content import tokenizer_content
from kdpipe.cache.stores.fsspec_store import RemoteFolder
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.cache.transfer import copy_cache
from kdpipe.cache.verify import verify_cache
from kdpipe.cache.writing.bucket import BucketPublisher, create_bucket
from kdpipe.schemas.errors import CacheDamaged, CacheError, CacheIncomplete, ConfigError
from kdpipe.schemas.manifest import FileRecord
from kdpipe.schemas.strict_json import sha256_hex
from support import tiny
from support.reading import digests_of_all

ATTEMPT = re.compile(r"^[0-9a-f]{16}$")
URL = "memory://bucket/cache"
HASTY = RetryPolicy(budget=1.0, first=0.001, longest=0.002)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same cache in a folder."""
    folder = tmp_path_factory.mktemp("bucket") / "cache"
    with tiny.unsynced():
        tiny.make_cache(folder)
    return folder


@pytest.fixture(autouse=True)
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    with tiny.unsynced():
        yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def attempts(number: int) -> set[str]:
    system = fsspec.filesystem("memory")
    found = system.find(f"/bucket/cache/{layout.part_dir(number)}")
    return {name.split("/")[5] for name in found if ATTEMPT.match(name.split("/")[5])}


def test_a_cache_in_a_bucket_is_the_one_in_a_folder(path: Path, tmp_path: Path) -> None:
    assert tiny.make_cache(URL) == open_cache(path).cache_id
    assert digests_of_all(open_cache(URL)) == digests_of_all(open_cache(path))
    assert verify_cache(URL, "full").ok
    assert all(len(attempts(number)) == 1 for number in range(len(open_cache(path).parts)))
    copy_cache(URL, tmp_path / "copy")
    assert tiny.digests_of(tmp_path / "copy") == {
        name: digest for name, digest in tiny.digests_of(path).items() if not name.startswith(layout.JOURNAL)
    }


@pytest.mark.slow
def test_a_bucket_synced_to_disk_by_another_tool_is_readable(
    path: Path, tmp_path: Path, memory: fsspec.AbstractFileSystem
) -> None:
    """As aws s3 sync does: bucket names are kept, with leftovers of a worker that was not first."""
    tiny.make_cache(URL)
    memory.get("/bucket/cache", str(tmp_path / "synced"), recursive=True)
    left = tmp_path / "synced" / layout.part_dir(0) / ("0" * 16) / layout.SEQUENCES
    left.parent.mkdir()
    left.write_bytes(b"half")
    assert digests_of_all(open_cache(tmp_path / "synced")) == digests_of_all(open_cache(path))
    assert verify_cache(tmp_path / "synced", "deep").ok
    home = next(path for path in (tmp_path / "synced" / layout.part_dir(1)).iterdir() if path.is_dir())
    tiny.flip_bit(home / layout.SEQUENCES, 1000)
    assert not verify_cache(tmp_path / "synced", "full").ok
    copy_cache(path, tmp_path / "copy")
    copy_cache(tmp_path / "synced", tmp_path / "copy")


def test_a_worker_resumes_with_the_parts_of_others(path: Path) -> None:
    first = tiny.begin_cache(URL)
    tiny.write_part(first, 2)
    second = tiny.begin_cache(URL)
    assert isinstance(second.publisher, BucketPublisher)
    assert second.committed() == [2]
    assert second.record(2) == first.record(2)
    with pytest.raises(CacheIncomplete, match="3 of 4"):
        second.seal()
    for number in second.missing():
        tiny.write_part(second, number)
    assert second.missing() == [] == first.missing()
    assert second.seal() == first.seal() == open_cache(path).cache_id


def test_a_part_is_committed_with_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = tiny.begin_cache(URL)

    def failing(*_: object) -> bool:
        raise CacheError("the machine is gone")

    with monkeypatch.context() as patched:
        patched.setattr(RemoteFolder, "create", failing)
        with pytest.raises(CacheError, match="the machine is gone"):
            tiny.write_part(writer, 0)
    assert attempts(0)
    assert writer.committed() == [] and 0 in writer.missing()
    tiny.write_part(writer, 0)
    assert writer.committed() == [0]


def test_the_first_worker_to_write_a_part_wins_and_the_other_leaves_nothing() -> None:
    """The second worker's part has other bytes, as on another GPU."""
    first, second = tiny.begin_cache(URL), tiny.begin_cache(URL)
    tiny.write_part(first, 0)
    with second.part(0) as part:
        for sequence, block in reversed(tiny.part_of(tiny.SMALL, 0)):
            part.add(sequence, block)
    assert len(attempts(0)) == 1
    tiny.write_part(second, 1)
    tiny.write_part(first, 1)
    assert len(attempts(1)) == 1
    for number in first.missing():
        tiny.write_part(first, number)
    first.seal()
    assert verify_cache(URL, "full").ok


def test_tables_of_the_first_worker_are_used_by_all(memory: fsspec.AbstractFileSystem) -> None:
    first = create_bucket(URL, tiny.manifest_of(), HASTY)
    tables = tiny.synthetic_tables(tiny.SMALL)
    first.publish_tables(tables)
    second = create_bucket(URL, tiny.manifest_of(), HASTY)
    second.publish_tables({name: values[::-1].copy() for name, values in tables.items()})
    for name in tables:
        assert (second.table(name) == first.table(name)).all()


def test_a_url_with_another_cache_or_other_files_is_refused(memory: fsspec.AbstractFileSystem) -> None:
    tiny.begin_cache(URL)
    other = tiny.manifest_of().model_copy(update={"seed": 99})
    with pytest.raises(ConfigError, match=r"memory://bucket/cache.*99") as caught:
        create_bucket(URL, other, HASTY)
    assert "memory://bucket/cache" in str(caught.value.hint)
    memory.pipe_file("/bucket/other/thesis.txt", b"my own")
    with pytest.raises(ConfigError, match=r"memory://bucket/other .*manifest.json.*thesis.txt"):
        create_bucket("memory://bucket/other", tiny.manifest_of(), HASTY)


def test_parts_written_with_other_tables_are_not_sealed(memory: fsspec.AbstractFileSystem) -> None:
    writer = tiny.begin_cache(URL)
    for number in writer.missing():
        tiny.write_part(writer, number)
    name = f"/bucket/cache/{layout.table_file('ids_by_rank')}"
    table = memory.cat_file(name)
    memory.pipe_file(name, table[4:] + table[:4])
    again = create_bucket(URL, tiny.manifest_of(), HASTY)
    assert again.has_tables
    with pytest.raises(CacheDamaged, match="parts/00000"):
        again.seal()
    memory.pipe_file(name, table)
    memory.rm(f"/bucket/cache/{layout.part_dir(1)}/{next(iter(attempts(1)))}/{layout.SEQUENCES}")
    with pytest.raises(CacheDamaged, match=r"parts/00001/sequences.arrow"):
        create_bucket(URL, tiny.manifest_of(), HASTY).seal()


def test_a_cache_is_not_sealed_before_its_tokenizer_is_uploaded() -> None:
    files = {"tokenizer.json": b"{}"}
    manifest = tiny.manifest_of()
    records = {name: FileRecord(bytes=len(data), sha256=sha256_hex(data)) for name, data in files.items()}
    tokenizer = {"files": records, "fingerprint": tokenizer_content(files).fingerprint}
    tokenized = manifest.model_copy(update={"tokenizer": manifest.tokenizer.model_copy(update=tokenizer)})
    writer = create_bucket(URL, tokenized, HASTY)
    writer.publish_tables(tiny.synthetic_tables(tiny.SMALL))
    for number in writer.missing():
        tiny.write_part(writer, number)
    with pytest.raises(CacheIncomplete, match=r"tokenizer/tokenizer.json"):
        writer.seal()
    writer.publish_tokenizer(files)
    assert writer.seal()


def test_a_file_instead_of_a_folder_is_refused(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe_file("/bucket/cache", b"a file")
    with pytest.raises(ConfigError, match="memory://bucket/cache"):
        create_bucket(URL, tiny.manifest_of(), HASTY)
