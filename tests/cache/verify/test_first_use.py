"""A cache is checked to the last byte before its first use on a machine, and that is remembered outside of it."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdpipe.cache import layout, open_cache
from kdpipe.cache.stores.local_store import LocalStore
from kdpipe.cache.verify.first_use import check_before_use, record_written, verify_and_record
from kdpipe.cache.verify.verified_log import FOLDER
from kdpipe.schemas.errors import CacheDamaged, CacheIncomplete, ConfigError
from kdpipe.schemas.progress import TaskUpdate
from support.children import mount_memory, mounted, remount
from support.recording import RecordingProgress
from support.tiny import begin_cache, copy_cache, flip_bit, make_cache, write_part

SHARD = f"parts/00001/{layout.array_shard('id')}"


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A memory that knows nothing yet; nothing here is about the disk, which is not waited for."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "kdpipe" / FOLDER


@pytest.fixture
def cache(tmp_path: Path, memory: Path) -> Path:
    """A finished cache of four parts, not verified before."""
    make_cache(tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def viewed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The files of caches that are opened, by name: every byte of a local file is read through one of these."""
    names: list[str] = []
    opened = LocalStore._open

    def noted(store: LocalStore, name: str) -> tuple[int, int]:
        names.append(name)
        return opened(store, name)

    monkeypatch.setattr(LocalStore, "_open", noted)
    yield names


def use(cache: Path, when: str | None = None) -> RecordingProgress:
    """Check a cache as a command does before its first use; the messages."""
    reported = RecordingProgress()
    check_before_use(cache, when, reported)  # type: ignore[arg-type]  # mypy takes no str for a Literal
    return reported


def of_parts(names: list[str]) -> set[str]:
    return {name for name in names if name.startswith("parts/")}


def test_the_first_use_checks_every_byte_and_the_second_reads_nothing_of_the_parts(
    cache: Path, memory: Path, viewed: list[str]
) -> None:
    first = use(cache)
    n_bytes = sum(row.n_bytes for row in open_cache(cache).parts)
    records = sum((cache / layout.part_dir(n) / layout.PART_RECORD).stat().st_size for n in range(4))
    assert str(cache) in first.messages[0] and first.messages[0].endswith(f": 4 parts, {n_bytes - records:,} bytes")
    assert first.messages[1].startswith(f"{cache} verified (")
    files = {f.relative_to(cache).as_posix() for f in cache.rglob("parts/**/*") if f.is_file()}
    assert of_parts(viewed) == files
    viewed.clear()
    second = use(cache)
    assert second.messages == second.warnings == []
    assert not of_parts(viewed)
    assert len(list(memory.iterdir())) == 1


def test_damage_is_found_at_the_first_use_although_sizes_are_right(cache: Path, memory: Path) -> None:
    flip_bit(cache / SHARD, 3)
    for _ in range(2):
        with pytest.raises(CacheDamaged) as caught:
            use(cache)
        assert caught.value.message.startswith(f"{cache} is damaged: {SHARD}: ")
        assert f"kdpipe cache verify {cache}" in str(caught.value.hint)
        assert caught.value.exit_code == 3
    assert not memory.exists()


def test_a_missing_file_and_a_damaged_table_are_damage(cache: Path) -> None:
    (cache / SHARD).unlink()
    with pytest.raises(CacheDamaged, match=r"is damaged: parts/00001/.*: the file is missing"):
        use(cache)
    shutil.rmtree(cache)
    make_cache(cache)
    flip_bit(cache / layout.table_file("ids_by_rank"), 0)
    with pytest.raises(CacheDamaged, match=r"is damaged: tables/ids_by_rank\.bin: its bytes are not those"):
        use(cache)


def test_extra_files_beside_a_cache_are_no_damage(cache: Path) -> None:
    for name in (".DS_Store", "parts/.DS_Store", "tables/.DS_Store", "journal/notes.txt"):
        (cache / name).parent.mkdir(exist_ok=True)
        (cache / name).write_text("x")
    assert len(use(cache).messages) == 2
    assert not verify_and_record(str(cache), "fast", RecordingProgress()).ok


@pytest.mark.parametrize("name", [SHARD, layout.INDEX, layout.MANIFEST, layout.table_file("ids_by_rank")])
def test_a_file_with_another_time_has_the_cache_checked_again(cache: Path, name: str) -> None:
    use(cache)
    os.utime(cache / name, (1, 1))
    assert len(use(cache).messages) == 2
    assert use(cache).messages == []


def test_a_file_that_was_replaced_with_its_old_time_has_the_cache_checked_again(cache: Path) -> None:
    use(cache)
    before = (cache / SHARD).stat()
    flip_bit(cache / SHARD, 3)
    os.utime(cache / SHARD, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (cache / SHARD).stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(CacheDamaged, match="its bytes are not those that were written"):
        use(cache)


def test_a_copy_in_another_folder_is_checked_for_itself(cache: Path, tmp_path: Path, memory: Path) -> None:
    use(cache)
    copy = copy_cache(cache, tmp_path / "copy")
    assert len(use(copy).messages) == 2
    assert use(copy).messages == use(cache).messages == []
    (tmp_path / "link").symlink_to(copy)
    assert use(tmp_path / "link").messages == []
    assert len(list(memory.iterdir())) == 2


def test_another_cache_in_the_same_folder_is_checked(cache: Path, tmp_path: Path) -> None:
    use(cache)
    shutil.rmtree(cache)
    make_cache(cache)
    assert len(use(cache).messages) == 2


def test_always_checks_each_time_and_never_does_not_at_all(cache: Path, viewed: list[str]) -> None:
    assert len(use(cache, "always").messages) == 2
    assert len(use(cache, "always").messages) == 2
    flip_bit(cache / SHARD, 3)
    viewed.clear()
    assert use(cache, "never").messages == []
    assert viewed == []


def test_an_unfinished_cache_is_refused_only_with_verify_always(tmp_path: Path, memory: Path) -> None:
    write_part(begin_cache(tmp_path / "begun"), 0)
    assert use(tmp_path / "begun").messages == []
    with pytest.raises(CacheIncomplete, match="unfinished") as caught:
        use(tmp_path / "begun", "always")
    assert "--verify" in str(caught.value.hint)
    assert not memory.exists()


def test_verify_is_refused_for_a_cache_behind_a_url() -> None:
    check_before_use("memory://nowhere", None, RecordingProgress())
    with pytest.raises(ConfigError, match="memory://nowhere") as caught:
        check_before_use("memory://nowhere", "always", RecordingProgress())
    assert "--verify" in str(caught.value.hint)


@pytest.mark.parametrize("data", [b"", b"{}", b"not JSON", b'{"cache_id":"x","files":"y","path":"z"}', b"\xff\xfe"])
def test_a_broken_log_entry_is_replaced_after_a_new_check(cache: Path, memory: Path, data: bytes) -> None:
    use(cache)
    (file,) = memory.iterdir()
    file.write_bytes(data)
    reported = use(cache)
    assert reported.warnings[0].startswith("cannot read the record of an earlier verification")
    assert str(file) in reported.warnings[0]
    assert len(reported.messages) == 2
    assert use(cache).messages == []
    assert list(memory.iterdir()) == [file]


def test_a_log_that_cannot_be_written_is_only_a_warning(cache: Path, memory: Path) -> None:
    memory.parent.parent.mkdir()
    memory.parent.write_text("a file in place of a folder")
    for _ in range(2):
        reported = use(cache)
        assert len(reported.messages) == 2
        assert reported.warnings[-1].startswith("could not record that the cache was verified")


def test_a_log_that_cannot_be_read_is_only_a_warning(cache: Path, memory: Path) -> None:
    use(cache)
    (file,) = memory.iterdir()
    file.unlink()
    file.mkdir()
    reported = use(cache)
    assert len(reported.messages) == 2
    assert "cannot be read: Is a directory" in reported.warnings[0]
    assert "could not record" in reported.warnings[1]


def test_a_machine_without_a_home_folder_checks_each_time(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", nowhere)
    reported = use(cache)
    assert len(reported.messages) == 2
    assert [warning.endswith("Could not determine home directory.") for warning in reported.warnings] == [True]


def test_a_read_only_cache_is_checked_and_recorded(cache: Path, tmp_path: Path) -> None:
    def work() -> str:
        mount_memory(tmp_path / "stick", 1 << 24)
        copy_cache(cache, tmp_path / "stick" / "cache")
        remount(tmp_path / "stick", 1 << 24, read_only=True)
        return f"{len(use(tmp_path / 'stick' / 'cache').messages)} {len(use(tmp_path / 'stick' / 'cache').messages)}"

    ended = mounted(work)
    assert (ended.code, ended.output) == (0, "2 0")


def test_files_that_change_while_they_are_checked_are_not_recorded(
    cache: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Changing(RecordingProgress):
        def update(self, update: TaskUpdate) -> None:
            os.utime(cache / SHARD, (1, 1))

    reported = Changing()
    check_before_use(cache, None, reported)
    assert [str(cache) in warning for warning in reported.warnings] == [True]
    assert not memory.exists()


def test_a_long_check_reports_progress(cache: Path) -> None:
    reported = RecordingProgress()
    check_before_use(cache, None, reported)
    assert [update.done for update in reported.updates["verify"]] == [1, 2, 3, 4]
    assert reported.tasks["verify"].total == 4 and not reported.open_tasks


def test_a_cache_that_was_verified_is_not_checked_again(cache: Path) -> None:
    assert verify_and_record(str(cache), "fast", RecordingProgress()).ok
    assert len(use(cache, "always").messages) == 2
    os.utime(cache / SHARD, (1, 1))
    assert verify_and_record(str(cache), "full", RecordingProgress()).ok
    assert use(cache).messages == []


def test_a_writer_remembers_a_cache_all_of_whose_parts_it_wrote(tmp_path: Path, memory: Path) -> None:
    reported = RecordingProgress()
    writer = begin_cache(tmp_path / "made")
    for number in writer.missing():
        write_part(writer, number)
    assert writer.wrote_all
    writer.seal()
    record_written(writer, reported)
    assert reported.warnings == []
    assert use(tmp_path / "made").messages == []


def test_a_writer_does_not_remember_what_another_wrote(tmp_path: Path, memory: Path) -> None:
    write_part(begin_cache(tmp_path / "made"), 0)
    writer = begin_cache(tmp_path / "made")
    for number in writer.missing():
        write_part(writer, number)
    assert not writer.wrote_all
    writer.seal()
    record_written(writer, RecordingProgress())
    assert not memory.exists()
    assert len(use(tmp_path / "made").messages) == 2
