"""What a student's name may mean, and the errors for unknown names."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from kdpipe.pipeline.students.presets import PRESETS, TokenIds
from kdpipe.pipeline.training.run import student_identity
from kdpipe.schemas.errors import ConfigError
from support.family_configs import small_config
from support.models import tiny_llama
from support.students import IDS, found

CONFIG = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
          "num_attention_heads": 2}  # fmt: skip


def config_file(folder: Path, values: Any = CONFIG) -> Path:
    path = folder / "student.json"
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_made_for_the_caches_vocabulary(name: str) -> None:
    one = found(name, TokenIds(count=1234, longest=4096, begin=7, end=9))
    config = one.shape.config
    assert (one.kind, one.is_fresh, one.shape.vocabulary_size) == ("preset", True, 1234)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (7, 9, None)
    assert one.shape.max_positions == 4096
    assert found(name).shape.max_positions == 2048


@pytest.mark.parametrize(("name", "due"), [("100m", 100e6), ("350m", 350e6)])
def test_presets_have_the_parameters_that_they_are_called_after(name: str, due: float) -> None:
    assert found(name, TokenIds(count=32_000, longest=512)).shape.n_parameters == pytest.approx(due, rel=0.01)


def test_a_preset_is_meant_even_where_a_folder_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_llama(tmp_path / "tiny", vocabulary=300)
    assert found("tiny").is_fresh
    assert not found("./tiny").is_fresh


def test_a_config_takes_what_it_leaves_out_of_the_vocabulary_from_the_cache(tmp_path: Path) -> None:
    one = found(config_file(tmp_path))
    assert (one.kind, one.is_fresh) == ("config", True)
    assert (one.shape.vocabulary_size, one.shape.config.eos_token_id, one.shape.width) == (IDS.count, 2, 32)
    stated = found(config_file(tmp_path, {**CONFIG, "vocab_size": 512, "eos_token_id": 5}))
    assert (stated.shape.vocabulary_size, stated.shape.config.eos_token_id) == (512, 5)
    kept = found(config_file(tmp_path, {**CONFIG, "eos_token_id": 5}))
    assert (kept.shape.vocabulary_size, kept.shape.config.eos_token_id) == (IDS.count, 5)


def test_a_saved_config_with_infinities_is_a_fresh_student_of_an_identity(tmp_path: Path) -> None:
    config = small_config("mamba2")
    config.save_pretrained(tmp_path)
    one = found(tmp_path / "config.json", TokenIds(count=512, longest=64))
    assert one.shape.config.time_step_limit[1] == float("inf")
    assert student_identity(one) == student_identity(found(tmp_path / "config.json", TokenIds(count=512, longest=64)))
    config.time_step_limit = (0.0, 1.0)
    config.save_pretrained(tmp_path)
    assert student_identity(one) != student_identity(found(tmp_path / "config.json", TokenIds(count=512, longest=64)))


def test_an_encoder_decoder_is_no_student_as_config_or_as_folder(tmp_path: Path) -> None:
    config = small_config("bart")
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    for name in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(ConfigError, match="bart is an encoder-decoder") as caught:
            found(name)
        assert caught.value.exit_code == 2


def test_a_config_whose_sizes_have_no_names_is_refused(tmp_path: Path) -> None:
    small_config("blt").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"has no num_hidden_layers in its config: blt is not supported"):
        found(tmp_path / "config.json")


def test_a_folder_is_a_trained_student(tmp_path: Path) -> None:
    one = found(tiny_llama(tmp_path / "a"))
    assert (one.kind, one.is_fresh, one.shape.vocabulary_size) == ("folder", False, 512)
    assert one.origin == str(tmp_path / "a")
    assert found("tiny").origin is None


@pytest.mark.parametrize(
    ("values", "message", "hint"),
    [
        ([1], "no model_type", '"model_type": "llama"'),
        ({}, "no model_type", '"model_type": "llama"'),
        ({"model_type": "lama"}, "the model_type lama", "did you mean llama"),
        ({**CONFIG, "hiden_size": 3}, "an unknown key hiden_size", "did you mean hidden_size?"),
        ({"model_type": "t5"}, "t5 is an encoder-decoder", None),
    ],
    ids=["list", "empty", "slip in type", "slip in key", "encoder-decoder"],
)
def test_an_invalid_config_is_refused(values: Any, message: str, hint: str | None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        found(config_file(tmp_path, values))
    assert hint is None or hint in str(caught.value.hint)


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "student.yaml"
    path.write_text("model_type: llama")
    with pytest.raises(ConfigError, match="is not valid JSON") as caught:
        found(path)
    assert "100m" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        (None, "no student given", "tiny, 100m, 350m"),
        ("100M", "unknown student 100M", "did you mean 100m"),
        ("tinny", "unknown student tinny", "did you mean tiny"),
        ("absent.json", "no such file: absent.json", "model_type"),
        ("./absent", "no such folder: ./absent", "Hub id"),
    ],
)
def test_a_name_that_means_nothing_is_refused(
    name: str | None, message: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        found(name) if name is not None else find_no_process()
    assert caught.value.exit_code == 2
    assert hint in str(caught.value.hint)


def find_no_process() -> None:
    from kdpipe.pipeline.students.resolve import resolve_student
    from kdpipe.schemas.train_settings import StudentSettings

    resolve_student(StudentSettings(), IDS)


def test_a_folder_without_a_config_and_one_that_is_half_a_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        found(tmp_path / "empty")
    half = tiny_llama(tmp_path / "half")
    (half / "model.safetensors").write_bytes((half / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ConfigError, match="from its header"):
        found(half)


def test_quantized_weights_cannot_learn(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "a")
    path = folder / "config.json"
    quantized = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    path.write_text(json.dumps(json.loads(path.read_text()) | quantized))
    with pytest.raises(ConfigError, match="quantized weights, which cannot be trained"):
        found(folder)


def test_no_setting_of_a_fresh_student_is_ignored(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no revision"):
        found("tiny", revision="v1")
    with pytest.raises(ConfigError, match="LoRA needs a pretrained student"):
        found("tiny", lora=True)
