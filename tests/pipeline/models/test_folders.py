"""Model folders that are whole, and all the ways in which they are not."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from kdpipe.pipeline.models import folders
from kdpipe.schemas.errors import ConfigError
from support.models import build, tiny_llama


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "model", vocabulary=64)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    import transformers

    folder = tmp_path / "sharded"
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    build(config).save_pretrained(folder, max_shard_size="100KB")
    return folder


def test_a_hub_id_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert folders.local_folder("gpt2") is None
    assert folders.local_folder("org/name") is None
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert folders.local_folder("org/name") == Path("org/name")


@pytest.mark.parametrize("name", ["./model", "/models/big", "~/models/big", "a/b/c", "..\\models"])
def test_a_missing_path_is_reported_as_missing(name: str) -> None:
    with pytest.raises(ConfigError, match="no such folder") as caught:
        folders.local_folder(name)
    assert "org/name" in str(caught.value.hint)
    assert caught.value.exit_code == 2


def test_a_file_is_no_model(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json is a file"):
        folders.local_folder(str(folder / "config.json"))


def test_a_whole_model_passes(folder: Path, sharded: Path) -> None:
    folders.check_folder(folder)
    folders.check_folder(sharded)
    assert folders.weight_files(folder) == ("model.safetensors",)
    assert len(folders.weight_files(sharded)) > 1


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        folders.check_folder(tmp_path)


def test_an_adapter_without_its_base_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="is an adapter") as caught:
        folders.check_folder(tmp_path)
    assert "merge it" in str(caught.value.hint)


def test_a_config_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="a config and no weights"):
        folders.check_folder(folder)


def test_a_shard_that_is_missing_is_named(sharded: Path) -> None:
    first, *rest = folders.weight_files(sharded)
    (sharded / first).unlink()
    with pytest.raises(ConfigError, match=f"is incomplete: {first} of {len(rest) + 1} weight files") as caught:
        folders.check_folder(sharded)
    assert "download it again" in str(caught.value.hint)
    (sharded / rest[0]).unlink()
    with pytest.raises(ConfigError, match=f"{first} and 1 more of"):
        folders.check_folder(sharded)


@pytest.mark.parametrize("text", ["no json", "[]", "{}", '{"weight_map": {}}'])
def test_an_index_that_names_nothing_is_refused(text: str, sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ConfigError, match=r"is not valid JSON|is not a JSON object|lists no weights"):
        folders.check_folder(sharded)


@pytest.mark.parametrize("keep", [0, 5, 8, 200, -1])
def test_weights_that_were_cut_short_are_refused(keep: int, folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ConfigError, match=r"is not a complete safetensors file|from its header") as caught:
        folders.check_folder(folder)
    assert str(weights) in caught.value.message


def test_weights_with_bytes_behind_them_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"\0")
    with pytest.raises(ConfigError, match="from its header"):
        folders.check_folder(folder)


def test_older_files_of_torch_are_weights_too(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    assert folders.weight_files(folder) == ("pytorch_model.bin",)


def test_the_digest_of_weights_follows_their_names_and_bytes(sharded: Path) -> None:
    lines = [
        f"{name} {hashlib.sha256((sharded / name).read_bytes()).hexdigest()}\n"
        for name in sorted(folders.weight_files(sharded))
    ]
    assert folders.weights_sha256(sharded) == hashlib.sha256("".join(lines).encode()).hexdigest()
    before = folders.weights_sha256(sharded)
    config = json.loads((sharded / "config.json").read_text())
    (sharded / "config.json").write_text(json.dumps(config | {"note": 1}))
    assert folders.weights_sha256(sharded) == before
    path = sharded / folders.weight_files(sharded)[0]
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert folders.weights_sha256(sharded) != before


@pytest.mark.parametrize(
    ("card", "license"),
    [
        ("---\nlicense: apache-2.0\ntags:\n- x\n---\n# A model\n", "apache-2.0"),
        ("---\nlanguage: en\nlicense: 'mit'\n---\n", "mit"),
        ("---\nlicense: other\nlicense_name: llama4\n---\n", "other: llama4"),
        ("---\ntags: x\n---\nlicense: mit\n", None),
        ("# A model\nlicense: mit\n", None),
        ("", None),
    ],
)
def test_the_license_is_what_the_model_card_states(card: str, license: str | None) -> None:
    assert folders.license_of(card) == license
