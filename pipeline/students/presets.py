"""Preset students with random init: Llamas with tied embeddings, sized for the vocabulary of the cache.

In: a preset's name, the cache's token ids. Out: a transformers config. At 32,000 ids `100m` has 100.1 M parameters and
`350m` 350.4 M, embeddings included. Heads are 64 wide with grouped keys and values, as in small models since 2024.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import transformers

LEAST_POSITIONS: Final = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Sizes of a Llama."""

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
    """The number of token ids, the special ones, and the longest sequence of a cache."""

    count: int
    longest: int
    begin: int | None = None
    end: int | None = None
    padding: int | None = None

    def roles(self) -> dict[str, Any]:
        """Special ids by the keys of a config."""
        return {"bos_token_id": self.begin, "eos_token_id": self.end, "pad_token_id": self.padding}


def preset_config(name: str, ids: TokenIds) -> "transformers.LlamaConfig":
    import transformers

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
