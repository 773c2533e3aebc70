"""Loaded weights have the right type and are those that were saved."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from kdpipe.pipeline.models import devices
from kdpipe.pipeline.models.devices import Placement
from kdpipe.pipeline.teachers import load_teacher as loading
from kdpipe.pipeline.teachers.load_teacher import load, placed, recorded_settings
from kdpipe.pipeline.teachers.transformers_backend import teacher_shape
from kdpipe.schemas import manifest
from kdpipe.schemas.capture_settings import TeacherSettings
from kdpipe.schemas.errors import ConfigError
from support.models import tiny_llama

CPU = torch.device("cpu")


def loaded(folder: Path, **settings: Any) -> loading.LoadedTeacher:
    teacher_settings = TeacherSettings(name=str(folder), **settings)
    return load(teacher_settings, teacher_shape(teacher_settings), [CPU])


def reweighed(folder: Path, change: Any) -> Path:
    """The folder, its weights changed."""
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    return folder


def test_the_weights_are_those_of_the_file_and_stay_as_they_are(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model")
    found = loaded(folder)
    saved = safetensors.torch.load_file(folder / "model.safetensors")
    for name, tensor in found.model.state_dict().items():
        assert torch.equal(tensor, saved[name])
    assert not found.model.training
    assert not any(parameter.requires_grad for parameter in found.model.parameters())


def test_the_record_describes_the_teacher(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    record = loaded(folder, dtype="bfloat16").record
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert (record.name, record.dtype, record.license, record.n_layers) == ("model", "bfloat16", "mit", 2)
    assert record.weights_sha256 == hashlib.sha256(f"model.safetensors {digest}\n".encode()).hexdigest()
    assert record.full_distribution and not record.remote_code and record.revision is None


def test_other_bits_are_another_teacher_that_can_be_run_again(tmp_path: Path) -> None:
    shape = teacher_shape(TeacherSettings(name=str(tiny_llama(tmp_path))))
    plain = manifest.TeacherRecord(name="ORG/model", revision="abc", dtype="bfloat16")
    assert loading._how_quantized(TeacherSettings(name="ORG/model"), shape, "bfloat16") == ()
    assert recorded_settings("ORG/model", plain) == TeacherSettings(name="ORG/model", revision="abc", dtype="bfloat16")
    named = plain.model_copy(update={"name": "Model", "hub_id": "ORG/model"})
    assert recorded_settings("ORG/model", named) == recorded_settings("ORG/model", plain)
    assert recorded_settings("here/model", plain) == TeacherSettings(name="here/model", dtype="bfloat16")
    notes = set()
    for how in ("int8", "int4"):
        settings = TeacherSettings.model_validate({"name": "ORG/model", "quantize": how, "dtype": "float16"})
        note = loading._how_quantized(settings, replace(shape, quantized=True), "float16")
        notes.add(note)
        assert recorded_settings("ORG/model", plain.model_copy(update={"dtype": "quantized", "notes": note})) == (
            settings.model_copy(update={"revision": "abc"})
        )
    assert len(notes) == 2


def test_weights_that_are_stored_in_few_bits_say_how(tmp_path: Path) -> None:
    shape = teacher_shape(TeacherSettings(name=str(tiny_llama(tmp_path))))
    shape.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    settings = TeacherSettings(name="ORG/model")
    note = loading._how_quantized(settings, replace(shape, quantized=True), "float16")
    assert note == ("weights in stored bits by gptq, numbers in float16",)
    record = manifest.TeacherRecord(name="ORG/model", dtype="quantized", notes=note)
    assert recorded_settings("ORG/model", record) == TeacherSettings(name="ORG/model", dtype="float16")


@pytest.mark.parametrize(
    ("setting", "dtype"), [("auto", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)]
)
def test_the_number_type_is_the_requested_one(setting: str, dtype: torch.dtype, tmp_path: Path) -> None:
    found = loaded(tiny_llama(tmp_path), dtype=setting)
    assert found.dtype == dtype
    assert {parameter.dtype for parameter in found.model.parameters()} == {dtype}


def test_a_head_that_was_not_saved_is_not_made_up(tmp_path: Path) -> None:
    folder = reweighed(tiny_llama(tmp_path), lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(ConfigError, match=r"lacks weights that its config needs: lm_head\.weight") as caught:
        loaded(folder)
    assert "saved without its head" in str(caught.value.hint)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    def shrink(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:100].clone()

    with pytest.raises(ConfigError, match=r"do not match its config: lm_head\.weight has shape \[100, 64\],") as caught:
        loaded(reweighed(tiny_llama(tmp_path), shrink))
    assert len(caught.value.message.splitlines()) == 1


def test_a_model_larger_than_a_device_needs_the_library_that_spreads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "placed", lambda *args: Placement(kind="spread", max_memory={0: 1, 1: 1}))
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"is too large for cpu; .* accelerate") as caught:
        loaded(tiny_llama(tmp_path))
    assert caught.value.hint == "pip install 'kdpipe[large]'"


def test_a_model_is_placed_by_what_its_devices_have_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = teacher_shape(TeacherSettings(name=str(tiny_llama(tmp_path))))
    free = {"cuda:0": 100, "cuda:1": 300, "cpu": 10_000}
    monkeypatch.setattr(devices, "free_memory", lambda device: free[str(device)])
    cards = [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert placed(shape, 70, cards[:1]).kind == "one"
    assert placed(shape, 240, cards) == Placement(kind="spread", max_memory={0: 80, 1: 240})
    assert placed(shape, 1000, cards[:1]).max_memory == {0: 80, "cpu": 8000}
    assert placed(shape, 1 << 60, [CPU]).kind == "one"


def test_devices_keep_their_numbers_when_a_model_is_spread(tmp_path: Path) -> None:
    shape = teacher_shape(TeacherSettings(name=str(tiny_llama(tmp_path))))
    cards = [torch.device("cuda", 3), torch.device("cuda", 1)]
    spread = Placement(kind="offloaded", max_memory={0: 10, 1: 20, "cpu": 30})
    assert loading._mapped(shape, spread, cards) == {"device_map": "auto", "max_memory": {3: 10, 1: 20, "cpu": 30}}
    assert loading._mapped(shape, Placement(kind="one"), cards) == {}
