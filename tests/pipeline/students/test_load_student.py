"""Loaded weights: their data type, their seed, what of them is trainable."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from kdpipe.pipeline.students.load_student import description_of, load_student
from kdpipe.pipeline.students.parameter_roles import parameter_roles
from kdpipe.pipeline.students.resolve import resolve_student
from kdpipe.pipeline.students.student import Student
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.train_settings import StudentSettings
from support.family_checks import make_model
from support.family_configs import small_config
from support.models import tiny_llama, tiny_model
from support.students import IDS, batch_of, student

SIZES = (IDS.count, 64, 2)


def test_a_seed_draws_the_same_weights_to_the_bit_and_leaves_other_draws_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (student("tiny", seed=seed).model.state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


@pytest.mark.slow
def test_a_seed_draws_the_same_adapter_to_the_bit_and_leaves_other_draws_alone(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path, vocabulary=IDS.count)
    before = torch.get_rng_state()
    first, again, other = (student(folder, seed=seed, lora=True).trainable() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "fp16-pure"])
def test_weights_are_in_float32_unless_kept_in_16_bits(precision: str, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path, vocabulary=IDS.count)
    due = torch.float16 if precision == "fp16-pure" else torch.float32
    for name in (folder, "tiny"):
        found = student(name, precision=precision)
        assert {each.dtype for each in found.model.parameters()} == {due}
        assert found.layout == "packed"
        assert found.states(batch_of([[9, 5]])).rows_NH.dtype == due


def test_weights_of_16_bits_become_float32_as_they_are(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "a", vocabulary=IDS.count)
    half = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    found = student(tmp_path / "half").model.state_dict()
    assert all(torch.equal(found[name], each.float()) for name, each in half.state_dict().items())


def test_what_is_loaded_is_described_in_a_line(tmp_path: Path) -> None:
    assert description_of(student("tiny")) == "tiny: 111,680 parameters in float32"
    folder = tiny_llama(tmp_path, vocabulary=IDS.count)
    one = student(folder, freeze_head=True)
    trainable = one.n_parameters() - IDS.count * 64
    assert description_of(one) == f"{folder}: {one.n_parameters():,} parameters in float32, {trainable:,} trainable"
    one.model.requires_grad_(False)  # a merged adapter, which is evaluated and not trained
    assert description_of(one) == f"{folder}: {one.n_parameters():,} parameters in float32"


def test_a_frozen_head_does_not_learn(tmp_path: Path) -> None:
    found = student(tiny_llama(tmp_path, vocabulary=IDS.count), freeze_head=True)
    assert "lm_head.weight" not in found.trainable()
    assert "model.embed_tokens.weight" in found.trainable()
    assert not [note for note in found.notes if "embeddings" in note]


def test_a_frozen_head_tied_to_embeddings_is_reported(tmp_path: Path) -> None:
    found = student("tiny", freeze_head=True)
    assert [note for note in found.notes if "head and embeddings are tied" in note]
    assert not [name for name in found.trainable() if "embed" in name]


def test_weights_that_are_missing_or_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path, vocabulary=IDS.count)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ConfigError, match="lacks weights"):
        student(folder)
    path.write_text(json.dumps(config | {"intermediate_size": 96}))
    with pytest.raises(ConfigError, match="do not match its config"):
        student(folder)


def test_what_looks_ahead_is_refused(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    (tmp_path / "student.json").write_text(json.dumps({"model_type": "bert", **sizes}))
    with pytest.raises(ConfigError, match="is not a causal language model"):
        student(tmp_path / "student.json")


def test_a_family_without_checkpointing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_llama(tmp_path, vocabulary=IDS.count)
    monkeypatch.setattr(transformers.LlamaForCausalLM, "supports_gradient_checkpointing", False)
    with pytest.raises(ConfigError, match=r"\(llama\) .*gradient checkpointing"):
        student(folder, gradient_checkpointing=True)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_adapters_learn_and_nothing_else_does(family: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    folder = tiny_model(family, tmp_path, SIZES)
    batch = batch_of([[9, 5], [12]])
    plain, found = student(folder), student(folder, lora=True, lora_rank=4)
    assert all("lora_" in name for name in found.trainable())
    assert {parameter_roles(found.model)[name] for name in found.trainable()} == {"matrices"}
    assert found.notes == ()
    with torch.no_grad():
        assert torch.equal(found.states(batch).rows_NH, plain.states(batch).rows_NH)
    found.states(batch, layers=(1,)).rows_NH.sum().backward()
    assert all(each.grad is not None for each in found.trainable().values())
    assert all(each.grad is None for each in found.model.parameters() if not each.requires_grad)


def test_an_adapter_names_the_commit_of_its_base(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    found = resolve_student(StudentSettings(name=str(tiny_llama(tmp_path, vocabulary=IDS.count)), lora=True), IDS)
    pinned = replace(found, shape=replace(found.shape, revision="abc"))
    settings = StudentSettings(name=found.name, lora=True)
    loaded = load_student(pinned, settings, "fp32", torch.device("cpu"), 0)
    assert loaded.adapter.peft_config["default"].revision == "abc"


def test_adapters_learn_where_layers_are_checkpointed(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    folder = tiny_llama(tmp_path, vocabulary=IDS.count)
    batch = batch_of([[9, 5], [12]])
    gradients = []
    for on in (False, True):
        found = student(folder, lora=True, gradient_checkpointing=on)
        found.model.train()
        torch.manual_seed(0)
        with torch.no_grad():
            for each in found.trainable().values():
                each.normal_(std=0.1)
        found.states(batch).rows_NH.square().sum().backward()
        gradients.append([each.grad for each in found.trainable().values()])
    for plain, again in zip(*gradients, strict=True):
        assert plain is not None and again is not None
        torch.testing.assert_close(again, plain)


def test_adapters_without_their_library_are_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="LoRA needs peft") as caught:
        student(tiny_llama(tmp_path, vocabulary=IDS.count), lora=True)
    assert caught.value.hint == "pip install 'kdpipe[peft]'"


def injure(folder: Path, tensor: str, values: tuple[float, ...], *, as_bin: bool = False, shard: str = "100GB") -> str:
    """Save a small Llama some numbers of which are not finite; the file that holds them."""
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama(folder / "whole", vocabulary=IDS.count))
    with torch.no_grad():
        model.get_parameter(tensor).flatten()[: len(values)] = torch.tensor(values)
    model.save_pretrained(folder / "odd", max_shard_size=shard)
    if as_bin:
        torch.save(model.state_dict(), folder / "odd" / "pytorch_model.bin")
        (folder / "odd" / "model.safetensors").unlink()
        return "pytorch_model.bin"
    index = folder / "odd" / "model.safetensors.index.json"
    return str(json.loads(index.read_text())["weight_map"][tensor]) if index.exists() else "model.safetensors"


@pytest.mark.parametrize(
    "options", [{}, {"shard": "100KB"}, {"as_bin": True}], ids=["one file", "several files", "pytorch's format"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named_with_their_file(
    options: dict[str, Any], value: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensor = "model.layers.1.mlp.down_proj.weight"
    file = injure(tmp_path, tensor, (value, 1.0, value), **options)
    with pytest.raises(ConfigError) as caught:
        student(tmp_path / "odd")
    assert str(tmp_path / "odd" / file) in caught.value.message and tensor in caught.value.message
    assert "2 of 8,192" in caught.value.message and caught.value.exit_code == 2
    assert not caplog.records


def test_weights_whose_sum_overflows_are_finite_all_the_same(tmp_path: Path) -> None:
    # Logits of such a row overflow, which is another finding.
    injure(tmp_path, "lm_head.weight", (3e38,) * 64 + (0.0,) * 64)
    with pytest.raises(ConfigError, match=r"logits of .* are not finite"):
        student(tmp_path / "odd")


def test_a_weight_beyond_float16_differs_from_one_that_is_not_finite(tmp_path: Path) -> None:
    injure(tmp_path, "model.norm.weight", (7e4,))
    with pytest.raises(ConfigError, match=r"1 of 64 weights in model\.norm\.weight are not finite") as caught:
        student(tmp_path / "odd", precision="fp16-pure")
    assert "--precision bf16 or fp32" in str(caught.value.hint)
    assert student(tmp_path / "odd").notes == ()


def test_a_probe_stops_at_logits_that_are_not_finite_and_finds_nothing_else(tmp_path: Path) -> None:
    found = student(tiny_llama(tmp_path, vocabulary=IDS.count))
    found.model.lm_head.register_forward_hook(lambda module, args, out: out / 0)
    with pytest.raises(ConfigError, match=r"not finite: 4,800 of 4,800 for 16 tokens"):
        Student(found.model, found.shape, IDS.count)


def test_a_model_that_trains_on_texts_of_one_length_is_refused(tmp_path: Path) -> None:
    make_model(small_config("reformer"), tmp_path)
    before = torch.get_rng_state()
    with pytest.raises(ConfigError, match=r"15 tokens: .*axial_pos_shape") as caught:
        student(tmp_path)
    assert caught.value.exit_code == 2
    assert torch.equal(torch.get_rng_state(), before)
