"""What differs between two tokenizers: the same text must become the same ids in both.

In: two loaded tokenizers. Out: the first difference in words, or None. Padding, truncation and the order of added
tokens change no id and do not count; nor do roles (which token ends a document, say).
"""

import json
from typing import Any

from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer

# The parts of a tokenizer that turn text into ids, as tokenizer.json and people call them.
STEPS = {
    "normalizer": "normalizer",
    "pre_tokenizer": "pre-tokenizer",
    "model": "merges or scores",
    "post_processor": "post-processor",
    "decoder": "decoder",
    "added_tokens": "added tokens",
}


def difference(own: LoadedTokenizer, other: LoadedTokenizer) -> str | None:
    """Say what the first has instead of what the second has; None where the same text becomes the same ids."""
    mine, theirs = _state(own), _state(other)
    if mine == theirs:
        return None
    found = [*_sizes(own, other), *_ids(own, other)]
    if not found:
        found = [f"another {word}" for key, word in STEPS.items() if mine.get(key) != theirs.get(key)]
    return ", ".join(found)


def _state(tokenizer: LoadedTokenizer) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(tokenizer.fast.backend_tokenizer.to_str())
    return {key: state.get(key) for key in STEPS}


def _sizes(own: LoadedTokenizer, other: LoadedTokenizer) -> list[str]:
    mine, theirs = own.record.vocabulary_size, other.record.vocabulary_size
    return [] if mine == theirs else [f"{mine:,} ids instead of {theirs:,}"]


def _ids(own: LoadedTokenizer, other: LoadedTokenizer) -> list[str]:
    """Name the first id that stands for something else."""
    mine, theirs = ({id: text for text, id in each.fast.get_vocab().items()} for each in (own, other))
    differing = [id for id in sorted(mine.keys() & theirs.keys()) if mine[id] != theirs[id]]
    if not differing:
        return []
    first = differing[0]
    return [
        f"{len(differing):,} ids stand for other tokens, the first is {first}: {mine[first]!r}, not {theirs[first]!r}"
    ]
