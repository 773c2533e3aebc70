"""A tokenizer that transformers rebuilds from tokenizer_config.json: kept as loaded, and refused where forged."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from kdpipe.cache import layout
from kdpipe.cache.opening import open_cache
from kdpipe.cache.parts import tokenizer_files
from kdpipe.cache.parts.tokenizer_content import TokenizerContent, tokenizer_content
from kdpipe.cache.verify import verify_cache
from kdpipe.cli import main
from kdpipe.pipeline.students.cache_tokenizer import read_cache_tokenizer
from kdpipe.pipeline.tokenizers import backend_state, tokenizer
from kdpipe.pipeline.tokenizers.backend_state import differing_section
from kdpipe.pipeline.tokenizers.cached_tokenizer import with_reloadable_files
from kdpipe.pipeline.tokenizers.tokenizer import load_tokenizer
from kdpipe.schemas.errors import CacheDamaged, Incompatible
from kdpipe.schemas.strict_json import canonical, sha256_hex
from support.corpora import small_tokenizer
from support.damage import reseal
from support.stage_one import make_inputs, run, settings_for

TEXT = "the cat"


def edit(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file in place."""
    state = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(state | changes), encoding="utf-8")


def with_prefix_space(folder: Path, add: bool) -> None:
    edit(folder / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer", add_prefix_space=add)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two caches of one teacher, `true` with a space before a text and `false` without."""
    folder = tmp_path_factory.mktemp("rebuilt")
    make_inputs(folder, n_documents=6)
    for add in (True, False):
        with_prefix_space(folder / "teacher", add)
        run(settings_for(folder).model_copy(update={"out": str(folder / str(add).lower())}))
    return folder


def ids(cache: Path) -> list[int]:
    loaded = read_cache_tokenizer(open_cache(cache)).loaded
    assert loaded is not None
    return list(loaded.encode([TEXT], add_special_tokens=False)[0].ids)


def train(cache: Path, out: Path) -> int:
    given = ["train", "--from-cache", str(cache), "--student", "tiny", "--out", str(out), "--max-steps", "1"]
    return main.run(given)


@pytest.mark.slow
def test_a_tokenizer_whose_configuration_changes_its_ids_is_cached_as_loaded(folder: Path, tmp_path: Path) -> None:
    caches = folder / "true", folder / "false"
    spaced, plain = caches
    assert ids(spaced) != ids(plain)
    manifests = [open_cache(path).manifest for path in caches]
    assert manifests[0].tokenizer.fingerprint != manifests[1].tokenizer.fingerprint
    for path in caches:
        stated = Tokenizer.from_file(str(path / "tokenizer/tokenizer.json"))
        assert stated.encode(TEXT, add_special_tokens=False).ids == ids(path)
        assert verify_cache(path, "full").ok
    assert train(spaced, tmp_path / "run") == 0
    assert (plain / "tokenizer/tokenizer.json").read_bytes() == (folder / "teacher/tokenizer.json").read_bytes()


def test_a_configuration_forged_to_change_ids_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forged = tmp_path / "forged"
    shutil.copytree(folder / "false", forged)
    with_prefix_space(forged / layout.TOKENIZER, True)
    restate(forged)
    assert verify_cache(forged, "full").ok, "every digest and the fingerprint are those of the files"
    with pytest.raises(CacheDamaged, match="pre_tokenizer"):
        read_cache_tokenizer(open_cache(forged))
    assert train(forged, tmp_path / "run") == 3
    assert "pre_tokenizer" in capsys.readouterr().err


def test_a_good_tokenizer_is_compared_once_when_a_cache_is_opened(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared, read = list[bytes](), list[bytes]()

    def from_str(text: str) -> Tokenizer:
        compared.append(text.encode())
        return Tokenizer.from_str(text)

    def content(files: Mapping[str, bytes]) -> TokenizerContent:
        read.append(files["tokenizer.json"])
        return tokenizer_content(files)

    monkeypatch.setattr(backend_state, "Tokenizer", SimpleNamespace(from_str=from_str))
    monkeypatch.setattr(tokenizer, "tokenizer_content", content)
    monkeypatch.setattr(tokenizer_files, "tokenizer_content", content)
    kept = read_cache_tokenizer(open_cache(folder / "true"))
    assert compared == [kept.files["tokenizer.json"]]
    # As the cache states it, and as it was loaded.
    assert read == [kept.files["tokenizer.json"]] * 2


def test_special_tokens_that_are_split_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forged = tmp_path / "forged"
    shutil.copytree(folder / "false", forged)
    edit(forged / "tokenizer/tokenizer_config.json", split_special_tokens=True)
    restate(forged)
    assert train(forged, tmp_path / "run") == 4
    assert "split_special_tokens" in capsys.readouterr().err


def restate(cache: Path) -> None:
    """State the tokenizer's changed configuration in the manifest, and seal that again."""
    data = (cache / "tokenizer/tokenizer_config.json").read_bytes()
    manifest = json.loads((cache / layout.MANIFEST).read_bytes())
    manifest["tokenizer"]["files"]["tokenizer_config.json"] = {"bytes": len(data), "sha256": sha256_hex(data)}
    (cache / layout.MANIFEST).write_bytes(canonical(manifest))
    reseal(cache)


def test_a_tokenizer_class_named_by_the_model_only_is_stored_without_the_model(tmp_path: Path) -> None:
    source = small_tokenizer(tmp_path / "source")
    with_prefix_space(source, True)
    (source / "config.json").write_text('{"model_type": "qwen2"}', encoding="utf-8")
    loaded = load_tokenizer(str(source))
    assert loaded.fast.backend_tokenizer.normalizer is not None, "the class of the model, not the configuration's"
    kept = with_reloadable_files(loaded)
    assert kept.record.files.keys() == kept.files.keys()
    (tmp_path / "copy").mkdir()
    for name, data in kept.files.items():
        (tmp_path / "copy" / name).write_bytes(data)
    again = load_tokenizer(str(tmp_path / "copy"))
    assert again.fast.backend_tokenizer.to_str() == loaded.fast.backend_tokenizer.to_str()
    assert again.files == kept.files and again.record == kept.record
    assert (again.stop, again.turn_ends) == (loaded.stop, loaded.turn_ends)


def test_a_tokenizer_that_cannot_be_reloaded_from_its_files_is_refused(tmp_path: Path) -> None:
    loaded = load_tokenizer(str(small_tokenizer(tmp_path)))
    loaded.files["tokenizer_config.json"] = b'{"extra_special_tokens": ["<new>"]}'
    with pytest.raises(Incompatible, match="cannot be stored"):
        with_reloadable_files(loaded)


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}


@pytest.mark.parametrize(
    ("section", "stated", "differs"),
    [
        ("normalizer", {"type": "NFC"}, True),
        ("pre_tokenizer", BYTE_LEVEL | {"use_regex": False}, True),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [BYTE_LEVEL]}, True),
        ("pre_tokenizer", BYTE_LEVEL | {"trim_offsets": False}, False),
        ("post_processor", BYTE_LEVEL, True),
        ("decoder", {"type": "Fuse"}, True),
        ("decoder", BYTE_LEVEL | {"trim_offsets": False, "use_regex": False}, False),
        ("added_tokens", [ADDED | {"id": 300, "content": "cat"}], True),
        ("padding", {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                     "pad_type_id": 0, "pad_token": "a"}, False),
    ],
    ids=str,
)  # fmt: skip
def test_sections_are_compared_by_their_effect(tmp_path: Path, section: str, stated: Any, differs: bool) -> None:
    file = small_tokenizer(tmp_path) / "tokenizer.json"
    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_file(str(file)))
    assert differing_section(file.read_bytes(), fast) is None
    edit(file, **{section: stated})
    assert differing_section(file.read_bytes(), fast) == (section if differs else None)


def test_an_unreadable_tokenizer_is_refused(tmp_path: Path) -> None:
    file = small_tokenizer(tmp_path) / "tokenizer.json"
    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_file(str(file)))
    with pytest.raises(CacheDamaged, match=r"tokenizer\.json"):
        differing_section(b"{}", fast)
