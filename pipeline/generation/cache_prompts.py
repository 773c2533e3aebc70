"""Prompts from a cache: the starts of its validation documents.

In: a split of a cache. Out: the first tokens of a few documents. The prompt of a conversation, or of a prompt and
response, is what precedes the first trained token; that of a text has a fixed length.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from kdpipe.cache.reader import Cache

TEXT_TOKENS = 32
MAX_PROMPT_TOKENS = 256
# The end of `data.source` if long documents were cut into ranges, some of them for validation.
RANGES = re.compile(r" in [0-9,]+ ranges?\)")


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePrompt:
    """The start of a document, by its number in the split."""

    document: int
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """Rows `start` to `end` of a sequence, all of one document."""

    sequence: int
    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


def cache_prompts(split: Cache, n_prompts: int, max_tokens: int | None = None) -> list[CachePrompt]:
    """The prompts of the first documents of a split, in stored order; of longer ones the last `max_tokens`."""
    longest = min(MAX_PROMPT_TOKENS, max_tokens or MAX_PROMPT_TOKENS)
    return list(islice(_prompts(split, longest), n_prompts))


def has_ranges(cache: Cache) -> bool:
    """Whether documents of the cache may be ranges from within longer ones."""
    return RANGES.search(cache.manifest.data.source) is not None


def _prompts(split: Cache, longest: int) -> Iterator[CachePrompt]:
    first = 0
    for n_sequences in split.sequences_by_part:
        for document, piece in _first_pieces(split, range(first, first + n_sequences)).items():
            rows = split.tokens(piece.sequence)
            trained = np.flatnonzero(rows.loss_mask[piece.start : piece.end])
            if len(trained):
                n_tokens = int(trained[0]) + 1 if trained[0] else min(TEXT_TOKENS, len(piece) // 2)
                ids = rows.tokens[piece.start : piece.start + n_tokens].tolist()
                yield CachePrompt(document=document, ids=tuple(ids[-longest:]))
        first += n_sequences


def _first_pieces(split: Cache, sequences: range) -> dict[int, _Piece]:
    """The first piece of each document of a part.

    All pieces of a long document but the last are as long as a sequence and in order; packing may put the last one
    before them.
    """
    pieces: dict[int, _Piece] = {}
    whole = split.manifest.plan.sequence_length
    for number in sequences:
        rows = split.tokens(number)
        ends = [*rows.document_starts[1:].tolist(), len(rows.tokens)]
        for document, start, end in zip(rows.documents.tolist(), rows.document_starts.tolist(), ends, strict=True):
            known, piece = pieces.get(document), _Piece(sequence=number, start=start, end=end)
            if known is None or len(known) < len(piece) == whole:
                pieces[document] = piece
    return pieces
