"""Keys that transformers 4 needs in a config.json of transformers 5; without them it uses defaults silently.

In: the values of config.json, of tokenizer_config.json. Out: the values with the keys of transformers 4 added, none
removed. With 4.57.6 a Qwen2 without its RoPE base loads without an error and predicts something else.
"""

import json
from collections.abc import Mapping
from typing import Any

# Tokenizer classes that are new in transformers 5.
NEW_CLASSES = ("TokenizersBackend", "SentencePieceBackend", "PythonBackend", "MistralCommonBackend")
# RoPE types of transformers 4; it cannot load models with others.
KNOWN_ROPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
# Names in GPT-NeoX configs of transformers 4.
NEOX = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}


def for_transformers_4(config: Mapping[str, Any], *, tied: bool) -> dict[str, Any]:
    """The config with the keys of both versions."""
    both = {**config, **_rope(config)}
    both.setdefault("tie_word_embeddings", tied)
    if (dtype := config.get("dtype")) is not None:
        both["torch_dtype"] = dtype
    if isinstance(text := config.get("text_config"), dict):
        both["text_config"] = for_transformers_4(text, tied=tied)
    return both


def tokenizer_note(files: Mapping[str, bytes]) -> str | None:
    """How transformers 4 loads a tokenizer of a class that it lacks; the files stay unchanged."""
    try:
        stated = json.loads(files.get("tokenizer_config.json", b"{}")).get("tokenizer_class")
    except (ValueError, AttributeError):
        return None
    if stated not in NEW_CLASSES:
        return None
    return (
        f"the tokenizer class {stated} exists only in transformers 5; with transformers 4, load the tokenizer with "
        "PreTrainedTokenizerFast.from_pretrained"
    )


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """RoPE settings as separate keys, those of local layers under another name."""
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or not _is_known(rope):
        return {}
    if "full_attention" not in rope:
        return _flat(rope, NEOX if str(config.get("model_type")).startswith("gpt_neox") else {})
    flat = _flat(rope["full_attention"], {})
    local = rope.get("sliding_attention")
    if isinstance(local, dict) and "rope_theta" in local:
        flat["rope_local_base_freq"] = local["rope_theta"]
    return flat


def _is_known(rope: Mapping[str, Any]) -> bool:
    """Whether transformers 4 has the RoPE type of all layers."""
    kinds = [rope[key] for key in ("full_attention", "sliding_attention") if key in rope] or [rope]
    return all(isinstance(kind, dict) and kind.get("rope_type", "default") in KNOWN_ROPES for kind in kinds)


def _flat(rope: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    apart = ("rope_theta", "partial_rotary_factor")
    flat = {names.get(key, key): rope[key] for key in apart if key in rope}
    if rope.get("rope_type", "default") != "default":
        flat["rope_scaling"] = {key: value for key, value in rope.items() if key not in apart}
    return flat
