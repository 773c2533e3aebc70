"""Prompts from a cache: the starts of its validation documents.

In: a split of a cache. Out: the first tokens of a few documents; pieces of long ones count as documents. The prompt of
a conversation, or of a prompt and response, is what precedes the first trained token; that of a text has a fixed
length.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from kdpipe.cache.reader import Cache

TEXT_TOKENS = 32
MAX_PROMPT_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePrompt:
    """The start of a document, by its number in the split."""

    document: int
    ids: tuple[int, ...]


def cache_prompts(split: Cache, n_prompts: int) -> list[CachePrompt]:
    """The prompts of the first documents of a split, in stored order."""
    return list(islice(_prompts(split), n_prompts))


def _prompts(split: Cache) -> Iterator[CachePrompt]:
    seen: set[int] = set()
    for number in range(len(split)):
        rows = split.tokens(number)
        ends = [*rows.document_starts[1:].tolist(), len(rows.tokens)]
        for document, start, end in zip(rows.documents.tolist(), rows.document_starts.tolist(), ends, strict=True):
            trained = np.flatnonzero(rows.loss_mask[start:end])
            if document not in seen and len(trained):
                n_tokens = int(trained[0]) + 1 if trained[0] else min(TEXT_TOKENS, (end - start) // 2)
                ids = rows.tokens[start : start + n_tokens].tolist()
                yield CachePrompt(document=document, ids=tuple(ids[-MAX_PROMPT_TOKENS:]))
            seen.add(document)
