"""A chunk finds the largest ids, canonically among ties, and its sums are those of float64."""

import numpy as np
import pytest
import torch

from kdpipe.pipeline.targets.chunk import BLOCK, LogitChunk
from kdpipe.pipeline.targets.masses import LARGEST_MASS, Masses
from support.dense_twin import by_rank

CPU = torch.device("cpu")


def loaded(logits: torch.Tensor, temperature: float = 1.0) -> LogitChunk:
    """A chunk with some rows in it."""
    chunk = LogitChunk(logits.shape[1], CPU)
    chunk.load(logits)
    chunk.at(temperature)
    return chunk


@pytest.mark.parametrize("size", [1, 63, 64, 65, 1000, 5000])
@pytest.mark.parametrize("levels", [2, 5, 1000, 0])
def test_the_largest_ids_come_in_the_order_of_value_and_id(size: int, levels: int) -> None:
    generator = torch.Generator().manual_seed(size)
    logits = torch.randn(5, size, generator=generator) * 4
    if levels:
        logits = torch.randint(levels, (5, size), generator=generator).float() - levels
    logits[1, (size + 1) // 2 :] = -torch.inf
    logits[2] = 0.0
    for k in {1, min(7, size), min(40, size), min(64, size)}:
        found = loaded(logits).top(k)[:5].tolist()
        assert found == [by_rank(row)[:k] for row in logits.numpy()]


@pytest.mark.parametrize("temperatures", [(4.0, 2.0, 1.0), (4.0, 1.0, 0.5), (3.0, 1.0), (1000.0, 0.25)])
def test_powers_are_those_of_float64_however_they_came(temperatures: tuple[float, ...]) -> None:
    logits = torch.randn(3, 777, generator=torch.Generator().manual_seed(0)) * 5
    logits[0, :700] = -torch.inf
    chunk = loaded(logits, temperatures[0])
    for temperature in temperatures:
        chunk.at(temperature)
        z = logits.double().numpy()
        expected = np.exp((z - z.max(axis=1, keepdims=True)) / temperature)
        # An exp of float32 is off by 1e-7, its fourth power by four times that; what is below 1e-30 may vanish.
        np.testing.assert_allclose(chunk.powers_CP[:3, :777], expected, rtol=2e-5, atol=1e-30)
        np.testing.assert_allclose(chunk.total_C[:3], expected.sum(axis=1), rtol=1e-6)
        assert not chunk.powers_CP[:3, 777:].any()


def test_rows_that_are_not_a_distribution_are_marked() -> None:
    logits = torch.zeros(6, 100)
    logits[1, 3] = torch.nan
    logits[2, 99] = torch.inf
    logits[3] = -torch.inf
    logits[4, :99] = -torch.inf
    assert LogitChunk(100, CPU).load(logits).tolist() == [True, False, False, False, True, True]


def test_masses_are_found_where_they_lie_and_not_once_they_are_gone() -> None:
    logits = torch.randn(2, 300, generator=torch.Generator().manual_seed(1))
    logits[:, 5] = -torch.inf
    chunk = loaded(logits)
    masses = Masses(chunk, torch.full((chunk.n_rows,), 50.0))
    expected = np.rint(chunk.powers_CP[:2, :300].double().numpy() * 50).astype(int)
    assert masses.total_C[:2].tolist() == expected.sum(axis=1).tolist()
    masses.remove(
        torch.tensor([[7, 299]]).expand(chunk.n_rows, -1), torch.tensor([[True, False]]).expand(chunk.n_rows, -1)
    )
    expected[:, 7] = 0
    points = torch.arange(int(expected.sum(axis=1).min())).repeat(chunk.n_rows, 1)
    found = masses.find(points)[:2]
    for row in range(2):
        assert found[row].tolist() == np.repeat(np.arange(300), expected[row])[: points.shape[1]].tolist()


def test_masses_of_a_huge_vocabulary_at_a_tiny_share_still_add_up() -> None:
    chunk = loaded(torch.zeros(1, 40_000))
    masses = Masses(chunk, torch.full((chunk.n_rows,), 1e12))
    assert int(masses.total_C[0]) == 40_000 * LARGEST_MASS
    last = masses.find(masses.total_C[:, None] - 1)
    assert int(last[0, 0]) == 39_999


def test_a_chunk_holds_whole_blocks_and_at_least_a_row() -> None:
    chunk = LogitChunk(3_000_001, CPU)
    assert chunk.n_rows == 1
    assert chunk.shifted_CP.shape[1] % BLOCK == 0
