"""What transformers 4 must read in a config.json that transformers 5 wrote, and would otherwise guess without a word.

In: the values of config.json, of tokenizer_config.json. Out: the values with what 4 looks for added, nothing taken
away. Measured with 4.57.6 (reference/ecosystem.md section 5): without the base of its rotary positions a Qwen2 loads
without an error and says something else.
"""

import json
from collections.abc import Mapping
from typing import Any

# Classes of tokenizers that transformers 5 knows and 4 does not.
NEW_CLASSES = ("TokenizersBackend", "SentencePieceBackend", "PythonBackend", "MistralCommonBackend")
# The kinds of rotary positions that transformers 4 has; a model of another kind is none that it could read.
KNOWN_ROPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
# How GPT-NeoX called these in transformers 4.
NEOX = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}


def for_transformers_4(config: Mapping[str, Any], *, tied: bool) -> dict[str, Any]:
    """Say everything twice, as 5 and as 4 call it."""
    found = {**config, **_rope(config)}
    found.setdefault("tie_word_embeddings", tied)
    if (dtype := config.get("dtype")) is not None:
        found["torch_dtype"] = dtype
    if isinstance(text := config.get("text_config"), dict):
        found["text_config"] = for_transformers_4(text, tied=tied)
    return found


def tokenizer_note(files: Mapping[str, bytes]) -> str | None:
    """Say how 4 loads a tokenizer whose class it does not know: its files stay as they are, byte for byte."""
    try:
        stated = json.loads(files.get("tokenizer_config.json", b"{}")).get("tokenizer_class")
    except (ValueError, AttributeError):
        return None
    if stated not in NEW_CLASSES:
        return None
    return (
        f"the tokenizer's files name a class that only transformers 5 has, {stated}: transformers 4 loads the model as "
        "it is, and the tokenizer by PreTrainedTokenizerFast.from_pretrained"
    )


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of rotary positions, which 4 keeps one by one, and those of local layers under another name."""
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or not _is_known(rope):
        return {}
    if "full_attention" not in rope:
        return _flat(rope, NEOX if str(config.get("model_type")).startswith("gpt_neox") else {})
    found = _flat(rope["full_attention"], {})
    local = rope.get("sliding_attention")
    if isinstance(local, dict) and "rope_theta" in local:
        found["rope_local_base_freq"] = local["rope_theta"]
    return found


def _is_known(rope: Mapping[str, Any]) -> bool:
    """Whether transformers 4 has such positions: of one kind it knows, or of two kinds of layers."""
    kinds = [rope[key] for key in ("full_attention", "sliding_attention") if key in rope] or [rope]
    return all(isinstance(kind, dict) and kind.get("rope_type", "default") in KNOWN_ROPES for kind in kinds)


def _flat(rope: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    apart = ("rope_theta", "partial_rotary_factor")
    found = {names.get(key, key): rope[key] for key in apart if key in rope}
    if rope.get("rope_type", "default") != "default":
        found["rope_scaling"] = {key: value for key, value in rope.items() if key not in apart}
    return found
