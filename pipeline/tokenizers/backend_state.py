"""A loaded tokenizer compared with its tokenizer.json.

In: the bytes of tokenizer.json and a loaded tokenizer. Out: the first section that differs. transformers rebuilds some
sections from tokenizer_config.json and the tokenizer class, so the ids can differ from those of tokenizer.json.
"""

import json
from collections.abc import Iterator
from typing import Any, Final

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from kdpipe.cache.parts.tokenizer_content import TOKENIZER
from kdpipe.schemas.errors import CacheDamaged

SECTIONS: Final = ("normalizer", "pre_tokenizer", "model", "post_processor", "decoder", "added_tokens")
# The keys of ByteLevel with an effect, as a decoder and as a pre-tokenizer.
BYTE_LEVEL: Final = {"decoder": ("type",), "pre_tokenizer": ("type", "add_prefix_space", "use_regex")}
# Keys of BPE for which an empty string equals null.
AFFIXES: Final = ("continuing_subword_prefix", "end_of_word_suffix")


def differing_section(data: bytes, fast: PreTrainedTokenizerFast) -> str | None:
    """The name of the first section that differs between tokenizer.json and the loaded tokenizer."""
    try:
        stated = Tokenizer.from_str(data.decode("utf-8"))
    except Exception as error:  # tokenizers raises a bare Exception
        raise CacheDamaged(f"{TOKENIZER} cannot be loaded: {str(error)[:200]}") from None
    stated.no_padding()
    stated.no_truncation()
    expected, actual = stated.to_str(), fast.backend_tokenizer.to_str()
    if expected == actual:
        return None
    return next(_differing(json.loads(expected), json.loads(actual)), None)


def _differing(expected: dict[str, Any], actual: dict[str, Any]) -> Iterator[str]:
    for name in SECTIONS:
        if _effective(name, expected.get(name)) != _effective(name, actual.get(name)):
            yield name


def _effective(name: str, section: Any) -> Any:
    """A section without keys that have no effect on ids or texts."""
    if name == "model" and section["type"] == "BPE":
        return {key: None if key in AFFIXES and value == "" else value for key, value in section.items()}
    if name not in BYTE_LEVEL:
        return section
    if isinstance(section, list):
        return [_effective(name, item) for item in section]
    if not isinstance(section, dict):
        return section
    if section.get("type") == "ByteLevel":
        return {key: section[key] for key in BYTE_LEVEL[name]}
    return {key: _effective(name, value) for key, value in section.items()}
