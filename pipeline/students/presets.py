"""Presets of fresh students: Llama-shaped, with tied embeddings, made for the vocabulary of the cache.

In: a preset's name, what the cache's tokenizer says. Out: a config of transformers. At 32,000 ids `100m` has 100.1 M
parameters and `350m` 350.4 M, embeddings included; heads are 64 wide, and four of them share keys and values or fewer,
as in small models of 2024 and later.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import transformers

LEAST_POSITIONS: Final = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """The sizes of a Llama."""

    layers: int
    width: int
    inner: int
    heads: int
    key_value_heads: int


PRESETS: Final[Mapping[str, Preset]] = {
    "tiny": Preset(layers=2, width=64, inner=176, heads=4, key_value_heads=2),
    "100m": Preset(layers=12, width=768, inner=2048, heads=12, key_value_heads=4),
    "350m": Preset(layers=24, width=1024, inner=3456, heads=16, key_value_heads=4),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenIds:
    """What a fresh student is made for: the number of ids, those with a role, and the longest sequence."""

    count: int
    longest: int
    begin: int | None = None
    end: int | None = None
    padding: int | None = None

    def roles(self) -> dict[str, Any]:
        """Ids with a role, as configs call them."""
        return {"bos_token_id": self.begin, "eos_token_id": self.end, "pad_token_id": self.padding}


def preset_config(name: str, ids: TokenIds) -> transformers.LlamaConfig:
    """The config of a preset."""
    sizes = PRESETS[name]
    return transformers.LlamaConfig(
        vocab_size=ids.count,
        hidden_size=sizes.width,
        intermediate_size=sizes.inner,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.key_value_heads,
        max_position_embeddings=max(LEAST_POSITIONS, ids.longest),
        tie_word_embeddings=True,
        **ids.roles(),
    )
