"""Folders that hold something else, and steps taken out of order: each is refused in words that say what to do."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdpipe.cache import layout
from kdpipe.cache.opening import create_cache
from kdpipe.cache.parts.tokenizer_content import tokenizer_content
from kdpipe.schemas.errors import CacheDamaged, CacheIncomplete, CacheWriteError, ConfigError, WriteError
from kdpipe.schemas.manifest import FileRecord, Manifest
from kdpipe.schemas.strict_json import sha256_file
from support.synthetic import synthetic_tables
from support.tiny import SMALL, begin_cache, digests_of, make_cache, manifest_of, resume_cache, write_part

TOKENIZER = {"tokenizer.json": b'{"model": {}}', "merges.txt": b"a b\n"}


def with_tokenizer() -> Manifest:
    """A manifest that names the tokenizer's files."""
    files = {
        name: FileRecord(bytes=len(data), sha256=hashlib.sha256(data).hexdigest()) for name, data in TOKENIZER.items()
    }
    values = dict(manifest_of(SMALL))
    values["tokenizer"] = values["tokenizer"].model_copy(
        update={"files": files, "fingerprint": tokenizer_content(TOKENIZER).fingerprint}
    )
    return Manifest(**values)


def test_another_cache_in_the_folder_is_refused_with_what_differs(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache")
    before = digests_of(tmp_path / "cache")
    with pytest.raises(ConfigError) as caught:
        make_cache(tmp_path / "cache", replace(SMALL, seed=7, tau=0.1))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/cache holds another cache: ")
    assert "seed: existing 0, requested 7" in message
    assert "--tau: existing 0.04, requested 0.1" in message
    assert caught.value.hint == "choose another folder, or use the settings of this cache"
    assert digests_of(tmp_path / "cache") == before


def test_a_folder_with_other_things_is_refused_and_left_alone(tmp_path: Path) -> None:
    for name in ("thesis.tex", "photos"):
        (tmp_path / name).mkdir()
    with pytest.raises(ConfigError) as caught:
        make_cache(tmp_path)
    assert all(word in str(caught.value) for word in (str(tmp_path), "manifest.json", "photos, thesis.tex"))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["photos", "thesis.tex"]


@pytest.mark.parametrize("below", ["cache", "cache/inner"])
def test_a_file_where_the_folder_should_be_is_named(tmp_path: Path, below: str) -> None:
    (tmp_path / "cache").write_text("not a folder")
    with pytest.raises(WriteError) as caught:
        make_cache(tmp_path / below)
    assert str(tmp_path / below) in str(caught.value)


def test_an_empty_folder_and_missing_parents_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert make_cache(tmp_path / "empty") == make_cache(tmp_path / "a" / "b" / "c")


def test_a_part_needs_the_tables_first(tmp_path: Path) -> None:
    writer = create_cache(tmp_path / "cache", manifest_of(SMALL))
    assert not writer.has_tables
    with pytest.raises(CacheWriteError) as caught:
        write_part(writer, 0)
    assert "publish_tables" in str(caught.value.hint)


def test_wrong_tables_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    writer = create_cache(tmp_path / "cache", manifest_of(SMALL))
    with pytest.raises(CacheWriteError, match=r"\[\].*\['ids_by_rank'\]"):
        writer.publish_tables({})
    with pytest.raises(CacheWriteError, match=r"ids_by_rank .*\(3,\).*\(300,\)"):
        writer.publish_tables({"ids_by_rank": np.arange(3)})
    with pytest.raises(CacheWriteError, match="ids_by_rank"):
        writer.publish_tables({"ids_by_rank": np.zeros(300, np.uint32)})
    assert not writer.has_tables
    assert list((tmp_path / "cache" / layout.WORK).iterdir()) == []


def test_a_cache_with_missing_parts_is_not_sealed(tmp_path: Path) -> None:
    writer = begin_cache(tmp_path / "cache")
    write_part(writer, 2)
    with pytest.raises(CacheIncomplete, match="3 of 4"):
        writer.seal()
    assert writer.missing() == [0, 1, 3]
    assert not (tmp_path / "cache" / layout.INDEX).exists()


def test_the_tokenizer_is_published_byte_for_byte_before_sealing(tmp_path: Path) -> None:
    writer = create_cache(tmp_path / "cache", with_tokenizer())
    writer.publish_tables(synthetic_tables(SMALL))
    for number in writer.missing():
        write_part(writer, number)
    with pytest.raises(CacheIncomplete, match=r"tokenizer/") as caught:
        writer.seal()
    assert "publish_tokenizer" in str(caught.value.hint)
    with pytest.raises(CacheWriteError, match=r": merges.txt"):
        writer.publish_tokenizer({**TOKENIZER, "merges.txt": b"b a\n"})
    writer.publish_tokenizer(TOKENIZER)
    writer.seal()
    for name, data in TOKENIZER.items():
        assert (tmp_path / "cache" / layout.TOKENIZER / name).read_bytes() == data


def test_a_part_written_with_other_tables_is_not_sealed(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    writer = begin_cache(path)
    write_part(writer, 0)
    (path / layout.TABLES).rename(tmp_path / "old")
    other = create_cache(path, manifest_of(SMALL))
    other.publish_tables({"ids_by_rank": np.arange(300, dtype=np.uint32)})
    for number in other.missing():
        write_part(other, number)
    with pytest.raises(CacheDamaged, match="parts/00000"):
        other.seal()


def test_an_index_of_other_parts_is_refused(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache")
    make_cache(tmp_path / "other", replace(SMALL, seed=7))
    (tmp_path / "cache" / layout.INDEX).write_bytes((tmp_path / "other" / layout.INDEX).read_bytes())
    with pytest.raises(CacheDamaged, match=layout.INDEX):
        resume_cache(tmp_path / "cache")


def test_a_journal_is_written_once_and_does_not_change_the_cache_id(tmp_path: Path) -> None:
    identity = make_cache(tmp_path / "cache")
    writer = begin_cache(tmp_path / "cache")
    writer.write_journal(1, {"host": "first", "seconds": 1.5})
    writer.write_journal(1, {"host": "second"})
    name = tmp_path / "cache" / layout.journal_file(1)
    digest = sha256_file(tmp_path / "cache" / "parts/00001/part.json")
    assert json.loads(name.read_bytes()) == {"host": "first", "seconds": 1.5, "part": 1, "part_sha256": digest}
    assert writer.seal() == identity
