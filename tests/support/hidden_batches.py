"""Micro-batches with cached states, and manifests that name their layers, made without a cache.

In: lengths of documents, layers, a seed. Out: a `MicroBatch`, a student's states, a `Manifest`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kdpipe.pipeline.batches.micro_batch import MicroBatch
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.targets import HiddenSpec, Vector
from support.tiny import manifest_of

STUDENT_WIDTH = 7
STUDENT_LAYERS = 4
TEACHER_LAYERS = 12
ROW_LAYERS = {6: 5, 12: 5}
POOLED_LAYERS = {6: 6, 12: 6}
# Sequences as the lengths of their documents: packed, one alone, one of a single token, one without a row.
DOCUMENTS = ((4, 3, 1), (9,), (2, 2, 2), (5, 4), (1,), (3, 5), (6, 1), (2,))


def manifest_with(
    rows: Mapping[int, int] = ROW_LAYERS,
    pooled: Mapping[int, int] = POOLED_LAYERS,
    n_layers: int | None = TEACHER_LAYERS,
) -> Manifest:
    """A manifest whose cache keeps vectors of some layers, with their widths."""
    manifest = manifest_of()
    assert manifest.teacher is not None
    spec = HiddenSpec(rows=_vectors(rows), pooled=_vectors(pooled))
    teacher = manifest.teacher.model_copy(update={"n_layers": n_layers})
    return manifest.model_copy(update={"hidden": spec, "teacher": teacher})


def _vectors(widths: Mapping[int, int]) -> tuple[Vector, ...]:
    return tuple(Vector(layer=layer, width=width, group=width) for layer, width in widths.items())


def batch_with(
    documents: Sequence[Sequence[int]] = DOCUMENTS,
    rows: Mapping[int, int] = ROW_LAYERS,
    pooled: Mapping[int, int] = POOLED_LAYERS,
    seed: int = 0,
) -> MicroBatch:
    """Sequences of documents; every token but a document's last is a row, and some of those are masked too."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(sum(lengths) for lengths in documents)
    document = torch.full((len(documents), longest), -1)
    places: list[int] = []
    of_documents: list[tuple[int, int]] = []
    for b, lengths in enumerate(documents):
        start = 0
        for number, length in enumerate(lengths):
            document[b, start : start + length] = number
            of_documents.append((b, number))
            trained = torch.rand(length - 1, generator=generator) < 0.9
            places += [b * longest + start + t for t in range(length - 1) if trained[t]]
            start += length
    places_N = torch.tensor(places, dtype=torch.int64)
    return MicroBatch(
        numbers=tuple(range(len(documents))),
        documents=tuple(tuple(range(int(row.max()) + 1)) for row in document),
        tokens_BT=torch.zeros(len(documents), longest, dtype=torch.int64),
        document_BT=document,
        places_N=places_N,
        sequence_N=places_N // longest,
        labels_N=torch.zeros(len(places), dtype=torch.int64),
        hidden={layer: torch.randn(len(places), width, generator=generator) for layer, width in rows.items()},
        pooled={layer: torch.randn(len(of_documents), width, generator=generator) for layer, width in pooled.items()},
        document_D2=torch.tensor(of_documents, dtype=torch.int64),
    )


def part_of_batch(batch: MicroBatch, first: int, end: int) -> MicroBatch:
    """Some consecutive sequences of a micro-batch as one of their own."""
    assert batch.document_D2 is not None
    own_N = (batch.sequence_N >= first) & (batch.sequence_N < end)
    own_D = (batch.document_D2[:, 0] >= first) & (batch.document_D2[:, 0] < end)
    return replace(
        batch,
        numbers=batch.numbers[first:end],
        tokens_BT=batch.tokens_BT[first:end],
        document_BT=batch.document_BT[first:end],
        places_N=batch.places_N[own_N] - first * batch.tokens_BT.shape[1],
        sequence_N=batch.sequence_N[own_N] - first,
        labels_N=batch.labels_N[own_N],
        hidden={layer: states[own_N] for layer, states in batch.hidden.items()},
        pooled={layer: states[own_D] for layer, states in batch.pooled.items()},
        document_D2=batch.document_D2[own_D] - torch.tensor([first, 0]),
    )


def states_for(batch: MicroBatch, layers: Sequence[int], seed: int = 1) -> dict[int, Tensor]:
    """A student's states of some layers, each to be differentiated; padding is large, and must not matter."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for layer in layers:
        states_BTH = torch.randn(*batch.tokens_BT.shape, STUDENT_WIDTH, generator=generator)
        states_BTH[batch.document_BT < 0] = 1e4
        found[layer] = states_BTH.requires_grad_()
    return found
