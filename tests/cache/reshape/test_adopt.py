"""A part of another cache is taken over: the same bytes under another number, whatever kills the worker."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdpipe.cache import layout
from kdpipe.cache.catalog import load_manifest
from kdpipe.cache.durable import files
from kdpipe.cache.opening import create_cache, open_cache
from kdpipe.cache.parts.part_files import read_part_record
from kdpipe.cache.reshape.adopt import Fetch, adopt_part, fetch_from, with_changes, without_rows
from kdpipe.cache.stores.dispatch import open_store
from kdpipe.cache.stores.local_store import LocalStore
from kdpipe.cache.writing.writer import CacheWriter
from kdpipe.schemas.cache_plan import CachePlan, SplitPlan
from kdpipe.schemas.errors import CacheDamaged, Incompatible, WriteError
from kdpipe.schemas.manifest import Manifest
from support.kinds import make_kind
from support.reshaped import problems_in
from support.synthetic import synthetic_tables
from support.tiny import SMALL, digests_of, flip_bit, make_cache, manifest_of

PLAN = CachePlan(splits=(SplitPlan(name="train", bounds=(0, 4, 8)),), sequence_length=SMALL.sequence_length)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of four parts, the last of validation."""
    path = tmp_path_factory.mktemp("source") / "cache"
    make_cache(path)
    return path


def begin(folder: Path, **changes: Any) -> CacheWriter:
    """A cache for two parts of four documents."""
    writer = create_cache(folder, with_changes(manifest_of(), plan=PLAN, **changes))
    writer.publish_tables(synthetic_tables(SMALL))
    return writer


def adopt(writer: CacheWriter, number: int, source: Path, which: int, fetch: Fetch | None = None) -> bool:
    """Take part `which` over as part `number`."""
    store = LocalStore(source)
    manifest = load_manifest(store)
    record, _ = read_part_record(store, manifest, which, None)
    return adopt_part(writer, number, manifest, record, fetch or fetch_from(store, which))


def part_digests(path: Path, number: int) -> dict[str, str]:
    """The sha256 of the files of a part but its record."""
    found = digests_of(path / layout.part_dir(number))
    del found[layout.PART_RECORD]
    return found


def test_an_adopted_part_is_the_same_files_under_another_number(source: Path, tmp_path: Path) -> None:
    before = digests_of(source)
    writer = begin(tmp_path / "new")
    assert adopt(writer, 0, source, 2)
    assert adopt(writer, 1, source, 3)
    writer.seal()
    assert [part_digests(source, n) for n in (2, 3)] == [part_digests(tmp_path / "new", n) for n in (0, 1)]
    assert problems_in(tmp_path / "new") == []
    old, new = open_cache(source), open_cache(tmp_path / "new")
    assert new.part(1).record.split == "train"
    assert new.part(1).sequences.documents.min() == 4
    ours, theirs = new.part(0).rows(0, 1), old.part(2).rows(0, 1)
    assert ours.weights.tobytes() == theirs.weights.tobytes()
    linked = tmp_path / "new" / layout.part_dir(0) / layout.SEQUENCES
    assert linked.stat().st_ino == (source / layout.part_dir(2) / layout.SEQUENCES).stat().st_ino
    assert digests_of(source) == before


def test_only_what_must_change_in_the_record_has_changed(source: Path, tmp_path: Path) -> None:
    writer = begin(tmp_path / "new")
    adopt(writer, 1, source, 3)
    store = LocalStore(source)
    there, here = read_part_record(store, load_manifest(store), 3, None)[0], writer.record(1)[0]
    changed = {name for name in type(here).model_fields if getattr(here, name) != getattr(there, name)}
    assert changed == {"manifest_sha256", "part", "split", "first_document"}


def test_without_hard_links_the_files_are_copied_and_checked(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(files.errno.EXDEV, "other device")

    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    writer = begin(tmp_path / "new")
    monkeypatch.setattr(os, "link", refuse)
    assert adopt(writer, 0, copy, 0)
    assert part_digests(copy, 0) == part_digests(tmp_path / "new", 0)
    flip_bit(copy / layout.part_dir(1) / layout.array_shard("row"), 5)
    with pytest.raises(CacheDamaged, match=r"row/c/0/0.*sha256"):
        adopt(writer, 1, copy, 1)
    assert writer.committed() == [0]


def test_a_file_of_another_size_is_not_linked(source: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    os.truncate(copy / layout.part_dir(0) / layout.SEQUENCES, 10)
    with pytest.raises(CacheDamaged, match=r"sequences.arrow does not have the [0-9,]+ bytes that were written"):
        adopt(begin(tmp_path / "new"), 0, copy, 0)


def test_a_part_behind_a_url_is_fetched(source: Path, tmp_path: Path) -> None:
    writer = begin(tmp_path / "new")
    assert adopt(writer, 0, source, 1, fetch_from(open_store(f"local://{source}"), 1))
    assert part_digests(tmp_path / "new", 0) == part_digests(source, 1)


def test_a_file_behind_a_url_is_copied_piece_by_piece_and_checked(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdpipe.cache.reshape.adopt.PIECE_BYTES", 1000)
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    store = open_store(f"local://{copy}")
    monkeypatch.setattr(type(store), "view", None)
    writer = begin(tmp_path / "new")
    assert adopt(writer, 0, source, 1, fetch_from(store, 1))
    assert part_digests(tmp_path / "new", 0) == part_digests(source, 1)
    flip_bit(copy / layout.part_dir(0) / layout.SEQUENCES, 1500)
    with pytest.raises(CacheDamaged, match=r"sequences\.arrow.*sha256"):
        adopt(writer, 1, source, 0, fetch_from(store, 0))
    os.truncate(copy / layout.part_dir(0) / layout.SEQUENCES, 10)
    with pytest.raises(CacheDamaged, match=r"does not have the [0-9,]+ bytes that were written"):
        adopt(writer, 1, source, 0, fetch_from(store, 0))
    assert writer.committed() == [0]


def test_a_part_that_was_sent_to_a_bucket_is_found_one_folder_below(source: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    folder = copy / layout.part_dir(1)
    inner = folder / layout.attempt((folder / layout.PART_RECORD).read_bytes())
    names = [path for path in folder.iterdir() if path.name != layout.PART_RECORD]
    inner.mkdir()
    for path in names:
        path.rename(inner / path.name)
    writer = begin(tmp_path / "new")
    assert adopt(writer, 0, copy, 1)
    assert part_digests(tmp_path / "new", 0) == part_digests(source, 1)
    linked = tmp_path / "new" / layout.part_dir(0) / layout.SEQUENCES
    assert linked.stat().st_ino == (inner / layout.SEQUENCES).stat().st_ino


def test_who_comes_second_leaves_what_is_there(source: Path, tmp_path: Path) -> None:
    writer = begin(tmp_path / "new")
    assert adopt(writer, 0, source, 0)
    assert not adopt(writer, 0, source, 1)
    assert part_digests(tmp_path / "new", 0) == part_digests(source, 0)


def test_a_fetch_that_fails_leaves_nothing(source: Path, tmp_path: Path) -> None:
    def fail(*_: Any) -> None:
        raise OSError(files.errno.ENOSPC, "no space left")

    writer = begin(tmp_path / "new")
    with pytest.raises(WriteError, match="writing part 0: no space left"):
        adopt(writer, 0, source, 0, fail)
    assert writer.committed() == []
    assert list((tmp_path / "new" / layout.WORK).iterdir()) == []


def test_hidden_states_of_rows_can_be_left_out(tmp_path: Path) -> None:
    make_kind(tmp_path / "old", "none-hidden")
    store = LocalStore(tmp_path / "old")
    manifest = load_manifest(store)
    small = without_rows(manifest)
    assert {table.name for table in manifest.tables} - {table.name for table in small.tables} == {
        "pca_rows_1",
        "pca_rows_1_mean",
    }
    writer = create_cache(tmp_path / "new", small)
    old = open_cache(tmp_path / "old")
    writer.publish_tables({table.name: old.table(table.name) for table in small.tables})
    for number in writer.missing():
        assert adopt(writer, number, tmp_path / "old", number)
    assert writer.seal() != old.cache_id
    assert problems_in(tmp_path / "new") == []
    new = open_cache(tmp_path / "new")
    assert new[0].hidden == {}
    assert set(new.pooled(0)) == set(old.pooled(0))
    assert not (tmp_path / "new" / layout.part_dir(0) / layout.TARGETS / "hidden").exists()


def other(change: str) -> Manifest:
    """The manifest of a cache that differs in one thing."""
    base = with_changes(manifest_of(), plan=PLAN)
    match change:
        case "fewer documents":
            return with_changes(
                base, plan=CachePlan(splits=(SplitPlan(name="train", bounds=(0, 3)),), sequence_length=64)
            )
        case "shorter sequences":
            return with_changes(base, plan=PLAN.model_copy(update={"sequence_length": 63}))
        case "another quantizer":
            quantizer = base.arrays.logprob.quantizer.model_copy(update={"step": 1 / 8})  # type: ignore[union-attr]  # it has one
            logprob = base.arrays.logprob.model_copy(update={"quantizer": quantizer})  # type: ignore[union-attr]  # as above
            return with_changes(base, arrays=base.arrays.model_copy(update={"logprob": logprob}))
    raise AssertionError(change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("fewer documents", "part 0 has 4 documents, expected 3"),
        ("shorter sequences", "64 rows, the maximum is 63"),
        (
            "another quantizer",
            "another format: arrays.logprob.quantizer.step: existing 0.0625, requested 0.125",
        ),
    ],
)
def test_bytes_that_would_mean_something_else_are_refused(
    change: str, message: str, source: Path, tmp_path: Path
) -> None:
    writer = create_cache(tmp_path / "new", other(change))
    writer.publish_tables(synthetic_tables(SMALL))
    with pytest.raises(Incompatible) as refusal:
        adopt(writer, 0, source, 0)
    assert message in refusal.value.message


def test_a_part_made_with_another_table_is_refused(source: Path, tmp_path: Path) -> None:
    writer = create_cache(tmp_path / "new", with_changes(manifest_of(), plan=PLAN))
    writer.publish_tables(synthetic_tables(replace(SMALL, seed=9)))
    with pytest.raises(Incompatible, match="other tables: ids_by_rank"):
        adopt(writer, 0, source, 0)
