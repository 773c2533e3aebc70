"""How many bytes of text each token id stands for, from the tokenizer alone.

In: a tokenizer. Out: a number for each id. Byte-level vocabularies spell a byte by a character, others are decoded
behind a letter; special tokens stand for no text.
"""

import json
import re

import numpy as np
import numpy.typing as npt

from kdpipe.cache.format.invariants import MAX_TOKEN_BYTES
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer

BYTE_TOKEN = re.compile(r"^<0x[0-9A-F]{2}>$")


def token_sizes(tokenizer: LoadedTokenizer) -> npt.NDArray[np.uint32]:
    """Bytes of text by id."""
    fast = tokenizer.fast
    sizes = np.zeros(tokenizer.record.vocabulary_size, np.uint32)
    spelled = {i: token for token, i in fast.get_vocab().items()}
    added = {i: token.content for i, token in fast.added_tokens_decoder.items()}
    special = {i for i, token in fast.added_tokens_decoder.items() if token.special} | set(fast.all_special_ids)
    plain = sorted(spelled.keys() - added.keys() - special)
    if _is_byte_level(tokenizer):
        found = [len(spelled[i]) for i in plain]
    else:
        found = _decoded(tokenizer, plain, spelled)
    sizes[plain] = np.minimum(found, MAX_TOKEN_BYTES)
    for i, text in added.items():
        sizes[i] = 0 if i in special else min(len(text.encode()), MAX_TOKEN_BYTES)
    return sizes


def _is_byte_level(tokenizer: LoadedTokenizer) -> bool:
    """Whether the decoder turns each character of a token into a byte."""
    decoder = json.loads(tokenizer.fast.backend_tokenizer.to_str())["decoder"] or {}
    steps = decoder.get("decoders", [decoder])
    return any(step.get("type") == "ByteLevel" for step in steps)


def _decoded(tokenizer: LoadedTokenizer, ids: list[int], spelled: dict[int, str]) -> list[int]:
    """Lengths of ids decoded behind another one, which keeps their leading space."""
    if not ids:
        return []
    decode = tokenizer.fast.backend_tokenizer.decode_batch
    before = len(decode([[ids[0]]], skip_special_tokens=False)[0].encode())
    texts = decode([[ids[0], i] for i in ids], skip_special_tokens=False)
    return [
        1 if BYTE_TOKEN.match(spelled[i]) else max(0, len(text.encode()) - before)
        for i, text in zip(ids, texts, strict=True)
    ]
