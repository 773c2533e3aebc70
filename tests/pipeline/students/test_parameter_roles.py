"""What Muon takes of a model is decided by what a parameter does: a table of families, and the rules one by one."""

import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import transformers

from kdpipe.pipeline.students.parameter_roles import parameter_roles
from kdpipe.schemas.choices import Role

# By family: parameters by role, layer numbers left out. What is in no list is a vector.
FAMILIES: Mapping[str, tuple[set[str], set[str]]] = {
    "llama": (
        {"model.embed_tokens", "lm_head"},
        {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}
        | {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"},
    ),
    "gpt2": (
        {"transformer.wte", "transformer.wpe"},
        {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"},
    ),
    "opt": (
        {"model.decoder.embed_tokens", "model.decoder.embed_positions"},
        {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "fc1", "fc2"}
        | {"model.decoder.project_in", "model.decoder.project_out"},
    ),
    "mixtral": (
        {"model.embed_tokens", "lm_head"},
        {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}
        | {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"},
    ),
    "gpt_oss": (
        {"model.embed_tokens", "lm_head"},
        {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}
        | {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"},
    ),
    "qwen2_moe": (
        {"model.embed_tokens", "lm_head"},
        {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}
        | {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}
        | {"mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj", "mlp.shared_expert.down_proj"},
    ),
    "jetmoe": (
        {"model.embed_tokens"},
        {"self_attention.kv_proj", "mlp.input_linear", "mlp.output_linear"}
        | {"self_attention.experts.input_linear", "self_attention.experts.output_linear"},
    ),
    "mamba": (
        {"backbone.embeddings"},
        {"mixer.in_proj", "mixer.x_proj", "mixer.dt_proj", "mixer.out_proj"},
    ),
    "mamba2": ({"backbone.embeddings", "lm_head"}, {"mixer.in_proj", "mixer.out_proj"}),
}
SIZES: Mapping[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 2},
    "opt": {"num_hidden_layers": 2, "word_embed_proj_dim": 384},
    "qwen2_moe": {"num_hidden_layers": 2, "decoder_sparse_step": 1},
}


def on_meta(family: str) -> torch.nn.Module:
    """A model of a family in its default sizes, without weights."""
    config: Any = transformers.AutoConfig.for_model(family, **SIZES.get(family, {"num_hidden_layers": 2}))
    auto: Any = transformers.AutoModelForCausalLM
    with torch.device("meta"):
        model: torch.nn.Module = auto.from_config(config)
    return model


def names_of(roles: Mapping[str, Role], role: Role) -> set[str]:
    found = {name.removesuffix(".weight") for name, own in roles.items() if own == role}
    return {re.sub(r"^.*\.\d+\.", "", name) for name in found}


@pytest.mark.parametrize("family", FAMILIES)
def test_tables_and_matrices_of_a_family(family: str) -> None:
    roles = parameter_roles(on_meta(family))
    tables, matrices = FAMILIES[family]
    assert names_of(roles, "tables") == tables
    assert names_of(roles, "matrices") == matrices


@pytest.mark.parametrize(
    ("family", "vectors"),
    [
        ("mixtral", {"mlp.gate", "input_layernorm"}),
        ("gpt_oss", {"mlp.router", "mlp.experts.gate_up_proj_bias", "mlp.experts.down_proj_bias"}),
        ("qwen2_moe", {"mlp.gate", "mlp.shared_expert_gate"}),
        ("jetmoe", {"mlp.router.layer"}),
        ("mamba", {"mixer.A_log", "mixer.conv1d", "mixer.D"}),
    ],
)
def test_routers_and_vectors_in_disguise_are_vectors(family: str, vectors: set[str]) -> None:
    assert vectors <= names_of(parameter_roles(on_meta(family)), "vectors")


def test_a_tied_head_is_the_table_of_the_embeddings() -> None:
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    auto: Any = transformers.AutoModelForCausalLM
    roles = parameter_roles(auto.from_config(config))
    assert [name for name, role in roles.items() if role == "tables"] == ["model.embed_tokens.weight"]
