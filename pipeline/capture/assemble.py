"""Answers arranged as sequences: the teacher reads pieces by length, the cache holds them as they were packed.

In: the pieces of a part, how they are packed, and the answers, batch by batch. Out: sequences with their targets, in
the order of the part.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from kdpipe.cache.format.blocks import cut, join
from kdpipe.cache.format.rows import Block, Floats
from kdpipe.cache.format.rows import Sequence as StoredSequence
from kdpipe.pipeline.documents.segments import Segment, to_sequence
from kdpipe.pipeline.teachers import CaptureResult
from kdpipe.pipeline.teachers.batching import batches
from kdpipe.schemas.manifest import Manifest

Group = list[int]


def batches_in_order(
    pieces: Sequence[Segment], groups: Sequence[Group], batch_tokens: int, window_rows: int
) -> list[Group]:
    """Batches of pieces for a part, window after window: a function of the documents and these two sizes alone."""
    found: list[Group] = []
    window: Group = []
    n_tokens = 0
    for group in groups:
        window += group
        n_tokens += sum(len(pieces[i]) for i in group)
        if n_tokens >= window_rows:
            found += _batches_of(window, pieces, batch_tokens)
            window, n_tokens = [], 0
    return found + (_batches_of(window, pieces, batch_tokens) if window else [])


def _batches_of(window: Group, pieces: Sequence[Segment], batch_tokens: int) -> list[Group]:
    chosen = [pieces[i] for i in window]
    return [[window[i] for i in batch] for batch in batches(chosen, batch_tokens)]


def arrange(
    pieces: Sequence[Segment],
    groups: Sequence[Group],
    answered: Iterable[tuple[Group, CaptureResult]],
    manifest: Manifest,
) -> Iterator[tuple[StoredSequence, Block]]:
    """Give out every sequence as soon as all its pieces are answered, in order."""
    held: dict[int, tuple[Block, Mapping[int, Floats]]] = {}
    turn = 0
    for batch, answer in answered:
        ends = np.cumsum([len(pieces[i]) for i in batch])
        for place, (piece, block) in enumerate(zip(batch, cut(answer.block, ends), strict=True)):
            held[piece] = block, {layer: vectors[place] for layer, vectors in answer.pooled.items()}
        while turn < len(groups) and all(piece in held for piece in groups[turn]):
            blocks, pooled = zip(*(held.pop(piece) for piece in groups[turn]), strict=True)
            vectors = {layer: np.stack([each[layer] for each in pooled]) for layer in pooled[0]}
            yield to_sequence([pieces[i] for i in groups[turn]], vectors, manifest), join(blocks)
            turn += 1
    assert turn == len(groups), "a batch was left out"


def without_teacher(asked: Iterable[Sequence[Segment]]) -> Iterator[CaptureResult]:
    """The answers of a cache that holds tokens only."""
    for batch in asked:
        n_rows = sum(len(piece) for piece in batch)
        nothing, floats = np.zeros(n_rows, np.int32), np.zeros(0, np.float32)
        yield CaptureResult(block=Block(n_exact=nothing, n_draws=nothing, ids=np.zeros(0, np.int32), logprobs=floats))
