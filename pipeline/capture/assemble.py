"""Targets arranged as sequences: the teacher reads segments by length, the cache stores them as they were packed.

In: the segments of a part, how they are packed, and results batch by batch. Out: sequences with their targets, in
order.
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
    segments: Sequence[Segment], groups: Sequence[Group], batch_tokens: int, window_rows: int
) -> list[Group]:
    """Batches of segments for a part, window by window; they depend on the documents and these two sizes alone."""
    batches_so_far: list[Group] = []
    window: Group = []
    n_tokens = 0
    for group in groups:
        window += group
        n_tokens += sum(len(segments[i]) for i in group)
        if n_tokens >= window_rows:
            batches_so_far += _batches_of(window, segments, batch_tokens)
            window, n_tokens = [], 0
    return batches_so_far + (_batches_of(window, segments, batch_tokens) if window else [])


def _batches_of(window: Group, segments: Sequence[Segment], batch_tokens: int) -> list[Group]:
    chosen = [segments[i] for i in window]
    return [[window[i] for i in batch] for batch in batches(chosen, batch_tokens)]


def arrange(
    segments: Sequence[Segment],
    groups: Sequence[Group],
    results: Iterable[tuple[Group, CaptureResult]],
    manifest: Manifest,
) -> Iterator[tuple[StoredSequence, Block]]:
    """Yield each sequence as soon as the targets of all its segments are there, in order."""
    held: dict[int, tuple[Block, Mapping[int, Floats]]] = {}
    next_group = 0
    for batch, result in results:
        ends = np.cumsum([len(segments[i]) for i in batch])
        for place, (segment, block) in enumerate(zip(batch, cut(result.block, ends), strict=True)):
            held[segment] = block, {layer: vectors[place] for layer, vectors in result.pooled.items()}
        while next_group < len(groups) and all(segment in held for segment in groups[next_group]):
            blocks, pooled = zip(*(held.pop(segment) for segment in groups[next_group]), strict=True)
            vectors = {layer: np.stack([vectors[layer] for vectors in pooled]) for layer in pooled[0]}
            yield to_sequence([segments[i] for i in groups[next_group]], vectors, manifest), join(blocks)
            next_group += 1
    assert next_group == len(groups), "a batch is missing"
