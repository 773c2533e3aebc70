"""What is known of a teacher before its weights are loaded, and the teachers that are refused then."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import transformers

from kdpipe.pipeline.models import model_info as shapes
from kdpipe.pipeline.models.model_info import ModelInfo, check_lengths, check_vocabulary, quiet
from kdpipe.pipeline.teachers.transformers_backend import teacher_shape
from kdpipe.schemas.capture_settings import TeacherSettings
from kdpipe.schemas.errors import ConfigError
from support.family_configs import small_config
from support.models import FAMILIES, build, tiny_llama, tiny_model


def shape_of(folder: Path, **settings: Any) -> ModelInfo:
    return teacher_shape(TeacherSettings(name=str(folder), **settings))


def changed(folder: Path, changes: Mapping[str, Any]) -> Path:
    """The folder, its config changed."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_model_info_equals_that_of_the_loaded_model(family: str, tmp_path: Path) -> None:
    model = build(FAMILIES[family](128, 64, 3))
    model.save_pretrained(tmp_path)
    shape = shape_of(tmp_path)
    assert (shape.vocabulary_size, shape.width, shape.n_layers) == (128, 64, 3)
    assert shape.n_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shape.max_positions == (None if family == "mamba" else 256)
    assert (shape.stored_dtype, shape.quantized, shape.revision, shape.license) == ("float32", False, None, None)
    assert shape.parameter_bytes("bfloat16") == 2 * shape.n_parameters
    assert shape.parameter_bytes("int4") == shape.n_parameters // 2


def test_the_license_comes_from_the_model_card(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path)
    (folder / "README.md").write_text("---\nlicense: gemma\n---\n")
    assert shape_of(folder).license == "gemma"


def test_no_weights_are_read_for_a_shape(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path)
    weights = folder / "model.safetensors"
    head = weights.read_bytes()[:4096]
    size = weights.stat().st_size
    weights.write_bytes(head + b"\0" * (size - len(head)))
    assert shape_of(folder).n_layers == 2


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no revision v2") as caught:
        shape_of(tiny_llama(tmp_path), revision="v2")
    assert "remove the revision" in str(caught.value.hint)


def test_a_teacher_has_to_be_named() -> None:
    with pytest.raises(ConfigError, match="no teacher"):
        teacher_shape(TeacherSettings())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "t5", "is_encoder_decoder": True}, "t5 is an encoder-decoder"),
        ({"model_type": "vit", "architectures": ["ViTModel"]}, "not a causal language model .* knows: vit"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "it was saved as BertForMaskedLM"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "it was saved as LlamaForSequenceClassification"),
        ({"model_type": "no-such-type"}, "cannot be loaded"),
        ({"model_type": None}, "cannot be loaded"),
    ],
)
def test_what_is_no_causal_language_model_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = changed(tiny_llama(tmp_path), changes)
    with pytest.raises(ConfigError, match=message) as caught:
        shape_of(folder)
    assert caught.value.exit_code == 2
    assert len(caught.value.message.splitlines()) == 1


@pytest.mark.parametrize(
    "family", ["bart", "pegasus", "blenderbot", "marian", "prophetnet", "mvp", "bigbird_pegasus", "whisper"]
)
def test_the_decoder_of_an_encoder_decoder_is_refused_though_its_config_denies_it(family: str, tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_config(small_config(family))
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["is_encoder_decoder"] is False
    with pytest.raises(ConfigError, match=f"{family} is an encoder-decoder") as caught:
        shape_of(tmp_path)
    assert caught.value.exit_code == 2


def test_a_config_that_is_no_json_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path)
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be loaded") as caught:
        shape_of(folder)
    assert len(caught.value.message.splitlines()) == 1


def test_code_of_its_own_is_not_run_unless_allowed(tmp_path: Path) -> None:
    folder = changed(
        tiny_llama(tmp_path),
        {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}},
    )
    (folder / "own.py").write_text("raise SystemExit('this code was run')\n")
    with pytest.raises(ConfigError, match="contains its own code") as caught:
        shape_of(folder)
    assert "trust_remote_code" in str(caught.value.hint)


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(tmp_path: Path) -> None:
    shape = shape_of(tiny_llama(tmp_path, vocabulary=512))
    check_vocabulary(shape, 512)
    check_vocabulary(shape, 500)
    with pytest.raises(ConfigError, match="a vocabulary that does not match its tokenizer: 512 rows for 513 ids"):
        check_vocabulary(shape, 513)


def test_quantizing_without_its_library_names_the_install_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="bitsandbytes") as caught:
        shape_of(tiny_llama(tmp_path), quantize="int4")
    assert caught.value.hint == "pip install 'kdpipe[quant]'"


def test_a_model_that_is_quantized_is_not_quantized_again(tmp_path: Path) -> None:
    folder = changed(tiny_llama(tmp_path), {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    assert shape_of(folder).quantized
    with pytest.raises(ConfigError, match="already quantized"):
        shape_of(folder, quantize="int8")


@pytest.mark.parametrize(
    ("rope", "positions", "switches_at"),
    [
        ({"rope_type": "default", "rope_theta": 1e4}, 256, None),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256, "rope_theta": 1e4},
            1024,
            None,
        ),
        ({"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}, 256, None),
        (
            {
                "rope_type": "longrope",
                "original_max_position_embeddings": 64,
                "short_factor": [1.0] * 8,
                "long_factor": [2.0] * 8,
                "rope_theta": 1e4,
            },
            256,
            64,
        ),
    ],
    ids=lambda value: value.get("rope_type") if isinstance(value, dict) else None,
)
def test_positions_are_those_at_which_a_text_is_read_alike_in_any_batch(
    rope: dict[str, Any], positions: int, switches_at: int | None, tmp_path: Path
) -> None:
    shape = shape_of(changed(tiny_llama(tmp_path), {"rope_parameters": rope}))
    assert (shape.max_positions, shape.switches_at) == (positions, switches_at)
    check_lengths(shape, positions)
    with pytest.raises(ConfigError, match="reads at most"):
        check_lengths(shape, positions + 1)


def test_a_model_without_positions_reads_texts_of_any_length(tmp_path: Path) -> None:
    check_lengths(shape_of(tiny_model("mamba", tmp_path)), 1 << 20)


def test_a_hub_that_does_not_answer_is_reported_in_two_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("We couldn't connect to 'https://huggingface.co'\nCheck your internet connection")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", fail)
    with pytest.raises(ConfigError, match="org/name cannot be loaded: We couldn't connect to") as caught:
        teacher_shape(TeacherSettings(name="org/name"))
    assert len(caught.value.message.splitlines()) == 1
    assert "hf auth login" in str(caught.value.hint)


def test_a_model_of_the_hub_carries_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_llama(tmp_path)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    requested = []

    def config(name: str, revision: str | None, trust_remote_code: bool) -> Any:
        requested.append((name, revision, trust_remote_code))
        found = transformers.LlamaConfig.from_pretrained(folder)
        found._commit_hash = "0123abcd"
        return found

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", config)
    monkeypatch.setattr(shapes, "cached_file", lambda name, file, **kwargs: str(folder / file))
    shape = teacher_shape(TeacherSettings(name="org/name", revision="main"))
    assert requested == [("org/name", "main", False)]
    assert (shape.revision, shape.license) == ("0123abcd", "mit")


def test_the_retries_of_the_hub_are_silent() -> None:
    quiet()
    assert not logging.getLogger("huggingface_hub.utils._http").isEnabledFor(logging.WARNING)
