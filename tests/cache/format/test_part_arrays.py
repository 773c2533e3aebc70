"""An array of a part gives any range of its numbers, whatever was read before, and keeps no more than a few chunks."""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.cache.format.codecs import Codec, Pcodec, Plain
from kdpipe.cache.format.part_arrays import KEPT_TOGETHER, PartArray
from kdpipe.cache.format.shards import ShardWriter
from kdpipe.cache.format.zarr_json import ArrayGrid
from kdpipe.schemas.errors import CacheDamaged

SIZE, WIDTH, LENGTH = 4, 3, 50
quick = settings(max_examples=60, derandomize=True, deadline=None, database=None)
NUMBERS = np.random.default_rng(0).integers(0, 1000, (LENGTH, WIDTH)).astype(np.uint32)
kinds = pytest.mark.parametrize("kind", ["columns", "numbers", "plain"])


def opened(kind: str) -> tuple[PartArray, npt.NDArray[Any]]:
    """An array of a kind, and its numbers."""
    n_chunks = -(-LENGTH // SIZE)
    padded = np.zeros((n_chunks * SIZE, WIDTH), np.uint32)
    padded[:LENGTH] = NUMBERS
    held = {"columns": padded, "numbers": padded[:, 0], "plain": padded.astype(np.uint8)}[kind]
    chunk = {"columns": (SIZE, 1), "numbers": (SIZE,), "plain": (SIZE, WIDTH)}[kind]
    codec: Codec = Plain() if kind == "plain" else Pcodec(level=8)
    shape = (LENGTH, *held.shape[1:])
    grid = ArrayGrid(shape=shape, chunk=chunk, dtype=str(held.dtype), codec=codec, by_column=kind == "columns")
    file = io.BytesIO()
    writer, number = ShardWriter(file), 0
    for start in range(0, len(held), SIZE):
        rows = held[start : start + SIZE]
        for values in rows.T if kind == "columns" else [rows]:
            writer.add(number, codec.encode(values))
            number += 1
    sha256 = writer.finish(grid.n_chunks)
    return PartArray(memoryview(file.getvalue()), grid, sha256), held[:LENGTH]


ranges = st.tuples(st.integers(0, LENGTH), st.integers(0, LENGTH)).map(sorted)


@kinds
@quick
@given(wanted=st.lists(st.tuples(ranges, st.integers(0, WIDTH - 1)), max_size=8))
def test_any_range_equals_what_was_written_after_any_other_reads(
    kind: str, wanted: list[tuple[list[int], int]]
) -> None:
    array, held = opened(kind)
    for (start, stop), column in wanted:
        values = array.get(start, stop, column if kind == "columns" else 0)
        expected = held[start:stop, column] if kind == "columns" else held[start:stop]
        np.testing.assert_array_equal(values, expected, strict=True)


@quick
@given(wanted=st.lists(st.tuples(ranges, st.lists(st.integers(0, WIDTH - 1), unique=True)), max_size=8))
def test_several_columns_equal_those_read_one_by_one(wanted: list[tuple[list[int], list[int]]]) -> None:
    array, held = opened("columns")
    for (start, stop), columns in wanted:
        found = array.get_columns(start, stop, tuple(columns))
        np.testing.assert_array_equal(found, held[start:stop, columns].T, strict=True)


@kinds
@pytest.mark.parametrize("stop", [2, SIZE, 3 * SIZE, LENGTH])
def test_results_are_read_only(kind: str, stop: int) -> None:
    array, _ = opened(kind)
    for _ in range(2):
        with pytest.raises(ValueError, match="read-only"):
            array.get(0, stop)[0] = 1


@kinds
@pytest.mark.parametrize("n_chunks", [1, KEPT_TOGETHER, KEPT_TOGETHER + 1, LENGTH // SIZE])
def test_a_long_read_is_not_kept(kind: str, n_chunks: int) -> None:
    array, _ = opened(kind)
    found = array.get(0, n_chunks * SIZE)
    again = array.get(n_chunks * SIZE - 1, n_chunks * SIZE)
    np.testing.assert_array_equal(again, found[-1:])
    assert np.shares_memory(found, again) == (n_chunks <= KEPT_TOGETHER)


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (3, 2), (0, LENGTH + 1)])
def test_numbers_beyond_the_array_are_refused(start: int, stop: int) -> None:
    array, _ = opened("numbers")
    with pytest.raises(CacheDamaged, match=f"{start} to {stop} .* {LENGTH}"):
        array.get(start, stop)
