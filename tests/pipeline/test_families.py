"""Families of models that people use, from the teacher's rows to the saved student; `make families` takes them all."""

from pathlib import Path

import pytest

from support.family_checks import check_family
from support.family_configs import small_config

PEOPLE_USE = (
    "bamba",
    "deepseek_v3",
    "falcon",
    "gemma2",
    "gemma3_text",
    "gemma4_text",
    "gpt2",
    "gpt_neox",
    "gpt_oss",
    "granite",
    "llama",
    "llama4_text",
    "mamba2",
    "mistral",
    "mixtral",
    "olmo2",
    "opt",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
)


@pytest.mark.slow
@pytest.mark.parametrize("family", PEOPLE_USE)
def test_a_family_predicts_as_transformers_does_trains_and_is_saved(family: str, tmp_path: Path) -> None:
    result = check_family(small_config(family), tmp_path)
    assert not [note for note in result.notes if "output head" in note], "the fast path is meant"
