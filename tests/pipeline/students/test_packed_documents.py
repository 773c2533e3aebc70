"""Positions and rows of documents, against loops that are too simple to be wrong."""

import pytest
import torch

from kdpipe.pipeline.students.packed_documents import alone, is_packed, positions, run_alone
from support.students import batch_of

SHAPES = {
    "one": [[5]],
    "ones": [[1, 1, 1]],
    "packed": [[4, 1, 7], [12]],
    "padded": [[2, 3], [1]],
    "many": [[1, 2, 3, 4, 5, 6, 7, 8], [16, 17], [33]],
}
every_shape = pytest.mark.parametrize("lengths", SHAPES.values(), ids=list(SHAPES))


@every_shape
def test_positions_restart_with_each_document(lengths: list[list[int]]) -> None:
    batch = batch_of(lengths)
    for found, row in zip(positions(batch.document_BT), lengths, strict=True):
        due = [place for length in row for place in range(length)]
        assert found.tolist()[: len(due)] == due


@every_shape
def test_groups_hold_each_document_once_and_little_padding(lengths: list[list[int]]) -> None:
    batch = batch_of(lengths, pad=2)
    groups = alone(batch.document_BT, None)
    met = torch.cat([group.places_DL[group.is_there_DL] for group in groups])
    assert sorted(met.tolist()) == (batch.document_BT.flatten() >= 0).nonzero().flatten().tolist()
    assert sum(group.places_DL.numel() for group in groups) < 2 * len(met)
    documents = batch.document_BT.flatten()
    assert all((documents[places] == documents[places[0]]).all() for group in groups for places in group.places_DL)
    assert is_packed(batch.document_BT) == any(len(row) > 1 for row in lengths)


@every_shape
def test_what_is_run_alone_comes_back_to_its_place(lengths: list[list[int]]) -> None:
    batch = batch_of(lengths, pad=2)

    def read(ids: torch.Tensor) -> dict[int, torch.Tensor]:
        place = torch.arange(ids.shape[1]).expand_as(ids)
        return {0: torch.stack([ids, place], dim=-1).float()}

    found = run_alone(batch.tokens_BT, batch.document_BT, None, read)[0]
    due = torch.stack([batch.tokens_BT, positions(batch.document_BT)], dim=-1).float()
    assert torch.equal(found, due * (batch.document_BT >= 0)[..., None])


def test_groups_end_where_position_codes_switch() -> None:
    groups = alone(batch_of([[15, 9, 12]]).document_BT, 10)
    assert [group.places_DL.shape for group in groups] == [(1, 9), (2, 15)]
