"""Which rows and documents of a micro-batch are compared with each other.

In: a `MicroBatch`. Out: bounds of groups of G sequences, anchors of each sequence, means over documents. Groups are
fixed: sequences 0 to G - 1 of a micro-batch, then the next G. A micro-batch has whole groups, so that the groups of a
step do not depend on how it is split.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from kdpipe.pipeline.batches.micro_batch import MicroBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchors:
    """Evenly spaced rows of every sequence, and which pairs of them belong to one document."""

    rows_BA: Tensor
    pairs_BAA: Tensor


def n_groups(batch: MicroBatch, group: int) -> int:
    return -(-len(batch.tokens_BT) // group)


def group_bounds(sequence_N: Tensor, n_sequences: int, group: int) -> list[tuple[int, int]]:
    """Start and end of each group's members; `sequence_N` has the sequence of each member, in order."""
    firsts = torch.arange(0, n_sequences, group, device=sequence_N.device)
    starts = [*torch.searchsorted(sequence_N.contiguous(), firsts).tolist(), len(sequence_N)]
    return list(pairwise(starts))


def find_anchors(batch: MicroBatch, most: int) -> Anchors:
    """Up to `most` rows of each sequence; unused places have no pairs."""
    sequence_N, device = batch.sequence_N.contiguous(), batch.sequence_N.device
    every_B = torch.arange(len(batch.tokens_BT), device=device)
    first_B1 = torch.searchsorted(sequence_N, every_B)[:, None]
    count_B1 = torch.searchsorted(sequence_N, every_B, right=True)[:, None] - first_B1
    taken_B1 = count_B1.clamp(max=most)
    place_A = torch.arange(most, device=device)
    rows_BA = first_B1 + place_A * count_B1 // taken_B1.clamp(min=1)
    is_row_BA = place_A < taken_B1
    rows_BA = torch.where(is_row_BA, rows_BA, 0)
    if not len(sequence_N):
        return Anchors(rows_BA=rows_BA, pairs_BAA=torch.zeros(*rows_BA.shape, most, dtype=torch.bool, device=device))
    document_BA = batch.document_BT.flatten()[batch.places_N][rows_BA]
    pairs_BAA = is_row_BA[:, :, None] & is_row_BA[:, None] & (document_BA[:, :, None] == document_BA[:, None])
    return Anchors(rows_BA=rows_BA, pairs_BAA=pairs_BAA & (place_A[:, None] < place_A))


def documents_of(batch: MicroBatch) -> Tensor:
    """(sequence, document) of every pooled state, [D, 2]."""
    assert batch.document_D2 is not None, "pooled states come with the places of their documents"
    return batch.document_D2


def document_means(states_BTH: Tensor, batch: MicroBatch) -> Tensor:
    """The mean state over all tokens of each document, in the order of the pooled states: [D, H] in float32."""
    document_D2 = documents_of(batch)
    n_documents, device = len(document_D2), states_BTH.device
    # Padding is numbered -1, the last column: it and documents without a pooled state go to an extra slot at the end.
    slot_BX = torch.full((len(states_BTH), states_BTH.shape[1] + 1), n_documents, device=device)
    slot_BX[document_D2[:, 0], document_D2[:, 1]] = torch.arange(n_documents, device=device)
    b_B1 = torch.arange(len(states_BTH), device=device)[:, None]
    slot_X = slot_BX[b_B1, batch.document_BT].flatten()
    sums_DH = states_BTH.new_zeros(n_documents + 1, states_BTH.shape[2], dtype=torch.float32)
    sums_DH = sums_DH.index_add(0, slot_X, states_BTH.flatten(0, 1).float())
    counts_D = torch.bincount(slot_X, minlength=n_documents + 1)
    return sums_DH[:n_documents] / counts_D[:n_documents, None]
