"""What a student reads: documents apart, padding without effect, layers by number, heads of every kind."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from kdpipe.pipeline.models import probe as probing
from kdpipe.pipeline.models.head import Head
from kdpipe.pipeline.models.probe import probe
from kdpipe.pipeline.students import student as students
from kdpipe.pipeline.students.student import CALLED_HEAD, NO_HEAD, NOT_PACKED, CallableHead, Student
from support.models import FAMILIES, tiny_model
from support.students import CPU, IDS, alone, batch_of, student

ATTENTIVE = sorted(set(FAMILIES) - {"mamba"})
PACKED = ([11, 1, 9, 20], [3, 17], [41])
every_family = pytest.mark.parametrize("family", sorted(FAMILIES))


def folder_of(family: str, tmp_path: Path) -> Path:
    return tiny_model(family, tmp_path / family, (IDS.count, 64, 2))


def largest(difference: Tensor) -> float:
    return float(difference.detach().abs().max())


@every_family
def test_each_document_has_the_states_it_has_alone(family: str, tmp_path: Path) -> None:
    found = student(folder_of(family, tmp_path))
    batch = batch_of(PACKED, pad=3)
    # What a Mamba calls hidden states begins behind its first layer.
    counted = {1: 0, 2: 2} if family == "mamba" else {0: 0, 1: 1, 2: 2}
    with torch.no_grad():
        states = found.states(batch, layers=(0, 1, 2))
        for layer, place in counted.items():
            due = alone(found.model, batch, place)
            there = batch.document_BT >= 0
            assert largest((states.layers[layer] - due)[there]) < 1e-4 * largest(due)
        rows = alone(found.model, batch, 2).flatten(0, 1)[batch.places_N]
    assert largest(states.rows_NH - rows) < 1e-4 * largest(rows)


@every_family
def test_logits_are_the_models_own(family: str, tmp_path: Path) -> None:
    found = student(folder_of(family, tmp_path))
    batch = batch_of([[30], [30]])
    with torch.no_grad():
        states = found.states(batch)
        assert isinstance(found.head, Head)
        ours = found.head.logits(states.rows_NH)
        own = found.logits(batch.tokens_BT).flatten(0, 1)[batch.places_N]
    assert largest(ours - own) < 1e-4 * largest(own)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mamba"])
def test_documents_stay_apart_in_16_bits_too(family: str, tmp_path: Path) -> None:
    found = student(folder_of(family, tmp_path))
    batch = batch_of(PACKED, pad=1)
    with torch.no_grad():
        due = found.states(batch).rows_NH
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rows = found.states(batch).rows_NH
    assert largest(rows.float() - due) < 5e-2 * largest(due)


@pytest.mark.parametrize("family", ATTENTIVE)
def test_attention_reads_documents_packed(family: str, tmp_path: Path) -> None:
    found = student(folder_of(family, tmp_path))
    assert found.layout == "packed"
    assert found.notes == ()


def test_recurrent_models_read_documents_alone_and_report_it(tmp_path: Path) -> None:
    found = student(folder_of("mamba", tmp_path))
    assert found.layout == "alone"
    assert found.notes == (f"{tmp_path / 'mamba'}: {NOT_PACKED}",)


@pytest.mark.parametrize("kind", ["llama", "mamba"])
def test_layers_of_small_norm_are_found_too(kind: str, tmp_path: Path) -> None:
    config = FAMILIES[kind](IDS.count, 64, 2)
    (tmp_path / "config.json").write_text(config.to_json_string())
    assert student(tmp_path / "config.json").layout == ("packed" if kind == "llama" else "alone")


@every_family
def test_the_content_of_padding_and_of_other_documents_changes_nothing(family: str, tmp_path: Path) -> None:
    found = student(folder_of(family, tmp_path))
    batch = batch_of(PACKED, pad=4)
    others = batch.document_BT != 1
    changed = torch.where(others, (batch.tokens_BT + 5) % IDS.count, batch.tokens_BT)
    with torch.no_grad():
        first = found.states(batch, layers=(2,)).layers[2]
        second = found.states(replace(batch, tokens_BT=changed), layers=(2,)).layers[2]
    assert largest((first - second)[~others]) < 1e-5 * largest(first)
    assert largest((first - second)[others]) > 1e-2 * largest(first)


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_gradients_are_those_of_documents_read_alone(family: str, tmp_path: Path) -> None:
    found = student(folder_of(family, tmp_path))
    batch = batch_of(PACKED, pad=2)
    weights = torch.randn(len(batch.places_N), found.shape.width, generator=torch.Generator().manual_seed(1))

    def gradients(rows_NH: Tensor) -> list[Tensor]:
        inside = [each for name, each in found.trainable().items() if ".layers." in name]
        return list(torch.autograd.grad((rows_NH * weights).sum(), inside))

    ours = gradients(found.states(batch).rows_NH)
    due = gradients(alone(found.model, batch, found.shape.n_layers).flatten(0, 1)[batch.places_N])
    for mine, theirs in zip(ours, due, strict=True):
        assert largest(mine - theirs) < 1e-3 * largest(theirs)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_checkpointing_changes_no_gradient(family: str, tmp_path: Path) -> None:
    folder = folder_of(family, tmp_path)
    batch = batch_of(PACKED)
    found = {}
    for on in (False, True):
        one = student(folder, gradient_checkpointing=on)
        for module in one.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        one.model.train()
        states = one.states(batch, layers=(1,))
        (states.rows_NH.square().sum() + states.layers[1].square().sum()).backward()
        found[on] = {name: each.grad for name, each in one.trainable().items() if each.grad is not None}
    assert found[True].keys() == found[False].keys() and len(found[True]) > 4
    assert all(largest(found[True][name] - due) <= 1e-6 * largest(due) for name, due in found[False].items())


def test_a_model_without_positions_to_give_reads_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = transformers.LlamaModel.forward

    def forward(self: Any, input_ids: Tensor, use_cache: bool) -> Any:
        return body(self, input_ids, use_cache=use_cache)

    folder = folder_of("llama", tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    shape = student(folder).shape
    found = probe(model, shape, torch.float32, CPU, IDS.count)
    monkeypatch.setattr(transformers.LlamaModel, "forward", forward)
    with pytest.raises(TypeError):
        model.base_model(torch.ones(1, 2, dtype=torch.long), use_cache=False, position_ids=None)
    monkeypatch.setattr(students, "probe", lambda *given: found)
    assert Student(model, shape, IDS.count).layout == "alone"


def test_layers_that_cannot_be_found_come_from_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of("llama", tmp_path)
    batch = batch_of(PACKED)
    with torch.no_grad():
        due = student(folder).states(batch, layers=(0, 1, 2)).layers
        monkeypatch.setattr(probing, "decoder_layers", lambda body, n_layers: None)
        found = student(folder)
        got = found.states(batch, layers=(0, 1, 2)).layers
    assert all(torch.equal(got[layer], due[layer]) for layer in (0, 1, 2))


def test_a_model_that_does_more_behind_its_states_gives_its_logits_whole(tmp_path: Path) -> None:
    found = student(folder_of("llama", tmp_path))
    found.model.lm_head.register_forward_hook(lambda module, args, out: out + 1.0)
    found.model.lm_head.register_forward_hook(lambda module, args, out: out.sign() * out.abs().sqrt())
    head, found.model.get_output_embeddings = found.model.lm_head, lambda: None
    whole = Student(found.model, found.shape, 280)
    assert whole.notes == (f"{found.shape.name}: {NO_HEAD}",)
    batch = batch_of([[9, 8], [12]])
    states = whole.states(batch, layers=(1, 2))
    assert isinstance(whole.head, CallableHead)
    logits = whole.head(states.rows_NH)
    assert logits.shape == (len(batch.places_N), 280)
    rows = whole.states(batch, layers=(2,)).layers[2].flatten(0, 1)[batch.places_N]
    assert largest(logits - head(rows)[:, :280]) < 1e-4 * largest(logits)


class Odd(nn.Module):
    """A projection that is no `nn.Linear`."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, states: Tensor) -> Tensor:
        return states @ self.weight.t()


@pytest.mark.parametrize("family", ["cohere", "gemma2"])
def test_a_head_that_is_no_plain_matrix_is_called(family: str, tmp_path: Path) -> None:
    found = student(folder_of(family, tmp_path))
    found.model.lm_head = Odd(found.model.lm_head.weight.detach())
    odd = Student(found.model, found.shape, 280)
    assert odd.notes == (f"{found.shape.name}: {CALLED_HEAD}",)
    batch = batch_of([[9, 8], [12]])
    states = odd.states(batch)
    assert isinstance(odd.head, CallableHead)
    logits = odd.head(states.rows_NH)
    plain = Head(
        module=found.model.lm_head, vocabulary_size=280, scale=odd.head.scale, soft_cap=odd.head.soft_cap
    ).logits(states.rows_NH.detach())
    assert largest(logits - plain) < 1e-5
    assert (odd.head.scale, odd.head.soft_cap) == ((2.0, None) if family == "cohere" else (1.0, 4.0))
    logits.sum().backward()
    assert odd.trainable()["lm_head.weight"].grad is not None


def test_texts_on_both_sides_of_a_switch_of_position_codes_never_share_a_pass(tmp_path: Path) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    config = transformers.Phi3Config(
        vocab_size=IDS.count, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, original_max_position_embeddings=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        rope_parameters=rope,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    found = student(tmp_path)
    assert found.shape.switches_at == 16
    batch = batch_of([[30, 12], [9], [17, 16]])
    with torch.no_grad():
        states = found.states(batch, layers=(2,)).layers[2]
        due = alone(found.model, batch, 2)
    assert largest(states - due) < 1e-4 * largest(due)
