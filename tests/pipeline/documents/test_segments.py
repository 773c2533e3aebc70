"""Packing: every piece once, no sequence too long, the order a function of the pieces."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdpipe.cache.format.packing import OPEN_SEQUENCES
from kdpipe.pipeline.documents.segments import Segment, pack, to_sequence
from kdpipe.schemas.manifest import Manifest, SourceColumn
from support.synthetic import Recipe, synthetic_manifest


def segment(n_tokens: int, document: int = 0, **columns: object) -> Segment:
    tokens = np.arange(n_tokens, dtype=np.int32)
    mask = np.arange(n_tokens) < n_tokens - 1
    digest = hashlib.sha256(tokens.astype("<u4").tobytes()).digest()[:16]
    return Segment(
        split="train",
        document=document,
        offset=0,
        tokens=tokens,
        loss_mask=mask,
        token_bytes=np.ones(n_tokens, np.uint32),
        digest=digest,
        columns=columns,
        text="x" * n_tokens,
    )


def lengths_of(sequences: list[list[int]], lengths: list[int]) -> list[int]:
    return [sum(lengths[i] for i in sequence) for sequence in sequences]


def slow_pack(lengths: list[int], length: int) -> list[list[int]]:
    """The same rule, found by looking at every open sequence."""
    sequences: list[list[int]] = []
    open_ones: list[int] = []
    for i, n in enumerate(lengths):
        room = {s: length - sum(lengths[j] for j in sequences[s]) for s in open_ones}
        fitting = [s for s in open_ones if room[s] >= n]
        if fitting:
            chosen = min(fitting, key=lambda s: (room[s], s))
        else:
            chosen = len(sequences)
            sequences.append([])
            open_ones.append(chosen)
        sequences[chosen].append(i)
        room = {s: length - sum(lengths[j] for j in sequences[s]) for s in open_ones}
        open_ones = [s for s in open_ones if room[s] > 0]
        if len(open_ones) > OPEN_SEQUENCES:
            open_ones.remove(min(open_ones, key=lambda s: (room[s], s)))
    return sequences


@given(st.lists(st.integers(1, 40), max_size=300))
def test_every_segment_is_packed_once_and_no_sequence_is_too_long(lengths: list[int]) -> None:
    sequences = pack([segment(n) for n in lengths], 40)
    assert sorted(i for sequence in sequences for i in sequence) == list(range(len(lengths)))
    assert all(0 < n <= 40 for n in lengths_of(sequences, lengths))
    assert all(sequence == sorted(sequence) for sequence in sequences)
    assert [sequence[0] for sequence in sequences] == sorted(sequence[0] for sequence in sequences)


@given(st.lists(st.integers(1, 20), max_size=120), st.integers(20, 60))
def test_packing_equals_the_slow_reference(lengths: list[int], length: int) -> None:
    assert pack([segment(n) for n in lengths], length) == slow_pack(lengths, length)


def test_the_fullest_sequence_is_closed_when_too_many_are_open() -> None:
    lengths = [33] * 40 + [32] * 40 + [7] * 40
    assert pack([segment(n) for n in lengths], 40) == slow_pack(lengths, 40)


def test_short_documents_fill_sequences_nearly_whole() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 3000).tolist()
    sequences = pack([segment(n) for n in lengths], 512)
    assert sum(lengths) / (512 * len(sequences)) > 0.97


def test_without_packing_every_segment_is_a_sequence() -> None:
    assert pack([segment(3), segment(1)], 8, packed=False) == [[0], [1]]


def test_no_segments_make_no_sequences() -> None:
    assert pack([], 8) == []


def manifest_with(columns: tuple[SourceColumn, ...], text: bool) -> Manifest:
    manifest = synthetic_manifest(Recipe(vocabulary_size=64))
    return manifest.model_copy(update={"data": manifest.data.model_copy(update={"columns": columns, "text": text})})


@pytest.mark.parametrize("text", [True, False])
def test_a_sequence_has_the_data_of_each_segment(text: bool) -> None:
    manifest = manifest_with((SourceColumn(name="category", type="string"),), text)
    segments = [segment(3, 7, category="a"), segment(2, 9, category=None)]
    vectors = {2: np.ones((2, 4), np.float32)}
    sequence = to_sequence(segments, vectors, manifest)
    assert sequence.tokens.tolist() == [0, 1, 2, 0, 1]
    assert sequence.loss_mask.tolist() == [True, True, False, True, False]
    assert sequence.document_starts.tolist() == [0, 3]
    assert sequence.documents.tolist() == [7, 9]
    assert [row.tobytes() for row in sequence.digests] == [segments[0].digest, segments[1].digest]
    assert sequence.columns == {"category": ["a", None]}
    assert sequence.pooled[2].shape == (2, 4)
    assert sequence.texts == (["xxx", "xx"] if text else None)
