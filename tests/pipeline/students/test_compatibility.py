"""Whether a student may be trained from a cache, and the error if not."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdpipe.cache import open_cache
from kdpipe.pipeline.students.cache_tokenizer import CacheTokenizer, read_cache_tokenizer
from kdpipe.pipeline.students.compatibility import Compatibility, check_compatibility
from kdpipe.pipeline.tokenizers.tokenizer import load_tokenizer
from kdpipe.schemas.errors import CacheDamaged, ConfigError, Incompatible
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.train_settings import StudentSettings
from support.corpora import CHATML, small_tokenizer
from support.models import tiny_llama
from support.students import found
from support.tiny import SMALL, make_cache, manifest_of

IDS = 512


def cache_of(tmp_path: Path, tokenizer: Path, length: int = 64) -> tuple[str, Manifest]:
    """A cache without parts: its folder, with a tokenizer's files, and its manifest."""
    loaded = load_tokenizer(str(tokenizer), chat_template="none")
    folder = tmp_path / "cache"
    shutil.copytree(tokenizer, folder / "tokenizer")
    base = manifest_of(replace(SMALL, vocabulary_size=IDS))
    plan = base.plan.model_copy(update={"sequence_length": length})
    manifest = base.model_copy(update={"tokenizer": loaded.record, "plan": plan})
    (folder / "manifest.json").write_bytes(manifest.to_json())
    return str(folder), manifest


def tokenizer_of(cache: tuple[str, Manifest]) -> CacheTokenizer:
    return read_cache_tokenizer(open_cache(cache[0], allow_partial=True))


def fit(name: object, cache: tuple[str, Manifest], **settings: Any) -> Compatibility:
    kept = tokenizer_of(cache)
    given = StudentSettings(name=str(name), **settings)
    return check_compatibility(found(name, kept.ids, **settings), given, kept, cache[1])


@pytest.fixture
def cache(tmp_path: Path) -> tuple[str, Manifest]:
    return cache_of(tmp_path, small_tokenizer(tmp_path / "tokenizer"))


def student_of(folder: Path, rows: int = IDS, **tokenizer: Any) -> Path:
    return small_tokenizer(tiny_llama(folder, vocabulary=rows), **tokenizer)


def test_a_student_of_the_same_tokenizer_fits_and_keeps_its_own_files(
    tmp_path: Path, cache: tuple[str, Manifest]
) -> None:
    folder = student_of(tmp_path / "a")
    found = fit(folder, cache)
    assert found.notes == ()
    assert found.tokenizer_files["tokenizer.json"] == (folder / "tokenizer.json").read_bytes()


def test_a_fresh_student_takes_the_files_of_the_cache(cache: tuple[str, Manifest]) -> None:
    found = fit("tiny", cache)
    folder = Path(cache[0]) / "tokenizer"
    assert found.tokenizer_files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert found.notes == ()


def test_a_padded_vocabulary_just_works_with_a_line(tmp_path: Path, cache: tuple[str, Manifest]) -> None:
    (note,) = fit(student_of(tmp_path / "a", rows=640), cache).notes
    assert "640 embedding rows for 512 token ids" in note


def test_too_few_rows_are_refused(tmp_path: Path, cache: tuple[str, Manifest]) -> None:
    with pytest.raises(Incompatible, match="500 embedding rows, the cache 512") as caught:
        fit(student_of(tmp_path / "a", rows=500), cache)
    assert caught.value.exit_code == 4
    config = tmp_path / "student.json"
    config.write_text(json.dumps({"model_type": "llama", "vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 1}))
    with pytest.raises(Incompatible) as caught:
        fit(config, cache)
    assert "vocab_size to 512 or more" in str(caught.value.hint)


def test_another_vocabulary_is_refused_with_its_first_difference(tmp_path: Path, cache: tuple[str, Manifest]) -> None:
    with pytest.raises(Incompatible, match="400 ids instead of 512") as caught:
        fit(student_of(tmp_path / "a", vocabulary=400), cache)
    assert caught.value.exit_code == 4
    assert "other tokenizers are not supported" in str(caught.value.hint)
    folder = student_of(tmp_path / "b")
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text())
    ids = dict(state["model"]["vocab"])
    first, second = (next(text for text, id in ids.items() if id == wanted) for wanted in (300, 301))
    ids[first], ids[second] = 301, 300
    state["model"]["vocab"] = ids
    path.write_text(json.dumps(state))
    with pytest.raises(Incompatible, match="2 ids have other tokens, the first is 300: ") as caught:
        fit(folder, cache)
    assert repr(second) in caught.value.message


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("normalizer", {"type": "NFC"}, "another normalizer"),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
         "another pre-tokenizer"),
    ],
)  # fmt: skip
def test_the_same_vocabulary_used_otherwise_is_refused(
    key: str, value: Any, word: str, tmp_path: Path, cache: tuple[str, Manifest]
) -> None:
    folder = student_of(tmp_path / "a")
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(Incompatible, match=f"tokenizer of student .*: {word}(\n|$)"):
        fit(folder, cache)


def test_a_plain_student_may_learn_from_a_teacher_that_chats(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, small_tokenizer(tmp_path / "tokenizer", chat_template=CHATML))
    (note,) = fit(student_of(tmp_path / "a"), cache).notes
    assert "eos_token '<|endoftext|>' instead of" in note


def test_a_student_without_a_tokenizer_is_refused(tmp_path: Path, cache: tuple[str, Manifest]) -> None:
    with pytest.raises(ConfigError, match="no tokenizer in") as caught:
        fit(tiny_llama(tmp_path / "a"), cache)
    assert "tokenizer" in str(caught.value.hint)


def test_sequences_beyond_the_students_positions_are_refused(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, small_tokenizer(tmp_path / "tokenizer"), length=300)
    with pytest.raises(Incompatible, match="at most 256 tokens, the cache has sequences of 300") as caught:
        fit(student_of(tmp_path / "a"), cache)
    assert caught.value.exit_code == 4
    assert "--seq-len 256" in str(caught.value.hint)


def test_a_cache_without_tokenizer_files_still_knows_the_fingerprint(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache")
    cache = (str(tmp_path / "cache"), manifest_of(SMALL))
    assert "no tokenizer files" in fit("tiny", cache).notes[0]
    with pytest.raises(Incompatible, match=r"its fingerprint is [0-9a-f]{12}, the cache's [0-9a-f]{12}"):
        fit(student_of(tmp_path / "a"), cache)


def test_a_tokenizer_that_is_stored_otherwise_is_the_same(tmp_path: Path, cache: tuple[str, Manifest]) -> None:
    student = student_of(tmp_path / "a")
    file = student / "tokenizer.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    del state["model"]["ignore_merges"]  # as older versions of tokenizers write it
    file.write_text(json.dumps(state), encoding="utf-8")
    assert load_tokenizer(str(student)).record.fingerprint != cache[1].tokenizer.fingerprint
    assert fit(student, cache).notes == ()


def test_damaged_tokenizer_files_of_a_cache_are_named(tmp_path: Path, cache: tuple[str, Manifest]) -> None:
    path = Path(cache[0]) / "tokenizer" / "tokenizer.json"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b" ")
    with pytest.raises(CacheDamaged, match=r"tokenizer/tokenizer\.json differs from the manifest"):
        tokenizer_of(cache)
    path.unlink()
    with pytest.raises(CacheDamaged, match=r"tokenizer/tokenizer\.json is missing"):
        tokenizer_of(cache)


def test_roles_of_the_caches_tokenizer_become_a_fresh_students(cache: tuple[str, Manifest]) -> None:
    ids = tokenizer_of(cache).ids
    assert ids == replace(ids, count=IDS, longest=64, begin=None, end=0, padding=0)
