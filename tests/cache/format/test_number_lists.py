"""Lists of numbers out of Parquet: every spelling of a list, gaps, slices, against pyarrow's own Python values."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdpipe.cache.format.number_lists import EntryLists, NumberLists, depth, rows_of_lists
from kdpipe.cache.parts import arrow_files
from kdpipe.cache.parts.arrow_files import ParquetLists

FLAT = [[1, 2], [3], None, [], [4, 5, 6], [7]]
NESTED = [[[1.5], None, [2.0, 3.0]], [], [[4.0]], None, [[], [5.0]], [[6.0, 7.0]]]
PAIRS = [[[1, 2]], [], [[3, 4], None], None, [[5, 6]], [[7, 8], [9, 9]]]
COLUMNS = {
    "list": pa.array(FLAT, pa.list_(pa.int64())),
    "large": pa.array(FLAT, pa.large_list(pa.uint8())),
    "fixed": pa.array([[1, 2], [3, 4], None, [5, 6], [7, 8], [9, 0]], pa.list_(pa.int32(), 2)),
    "half": pa.array([[0.5], [1.5, 2.0], [], [0.25], [4.0], [8.0]], pa.list_(pa.float16())),
    "truths": pa.array([[True, False], [], [False], [True], [True, True, False], None], pa.list_(pa.bool_())),
    "nested": pa.array(NESTED, pa.list_(pa.list_(pa.float32()))),
    "nested_large": pa.array(NESTED, pa.large_list(pa.large_list(pa.float64()))),
    "nested_fixed": pa.array(PAIRS, pa.list_(pa.list_(pa.int8(), 2))),
}  # fmt: skip


def plain(value: Any) -> Any:
    """What was read, as pyarrow would give it to Python; a missing inner list is an empty one."""
    if value is None:
        return None
    if isinstance(value, NumberLists):
        ends = np.cumsum(value.counts)
        return [value.values[end - n : end].tolist() for end, n in zip(ends, value.counts, strict=True)]
    return value.tolist()


def due(name: str) -> list[Any]:
    rows = COLUMNS[name].to_pylist()
    if name.startswith("nested"):
        return [None if row is None else [each or [] for each in row] for row in rows]
    return rows


@pytest.fixture(scope="module", params=[1, 2, 6])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """All columns in a file with row groups of a size."""
    file = tmp_path_factory.mktemp("lists") / "a.parquet"
    pq.write_table(pa.table(COLUMNS), file, row_group_size=request.param)
    return str(file)


@pytest.mark.parametrize("name", COLUMNS)
def test_every_row_is_read_as_it_was_written(name: str, path: str) -> None:
    assert [plain(row[name]) for row in ParquetLists(path, [name]).rows_at()] == due(name)


@pytest.mark.parametrize("name", COLUMNS)
def test_some_rows_are_read_by_their_numbers(name: str, path: str) -> None:
    found = [plain(row[name]) for row in ParquetLists(path, [name]).rows_at([1, 2, 5])]
    assert found == [due(name)[i] for i in (1, 2, 5)]


def test_rows_are_read_few_at_a_time_when_they_are_large(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_files, "BATCH_BYTES", 8)
    assert [plain(row["nested"]) for row in ParquetLists(path, ["nested"]).rows_at()] == due("nested")


def test_missing_numbers_do_not_pass_for_numbers(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [[1, None], [2]], "b": [[[1.0]], [[None]]]}), tmp_path / "a.parquet")
    row = next(ParquetLists(str(tmp_path / "a.parquet"), ["a", "b"]).rows_at())
    assert row["a"].dtype == object
    assert row["b"].values.dtype == object


@pytest.mark.parametrize(
    "kind", [pa.int64(), pa.list_(pa.string()), pa.list_(pa.list_(pa.list_(pa.int8()))), pa.string()]
)
def test_what_is_no_list_of_numbers_is_known(kind: Any) -> None:
    assert depth(kind) == 0


def test_how_deep_lists_lie_is_known() -> None:
    assert [depth(COLUMNS[name].type) for name in ("list", "truths", "nested", "nested_fixed")] == [1, 1, 2, 2]


def test_entries_are_read_row_by_row_out_of_any_slice() -> None:
    entry = pa.struct([("decoded", pa.string()), ("logprob", pa.float64()), ("token", pa.string())])
    rows = [
        None,
        [[{"decoded": "a", "logprob": -1.0, "token": "token_id:1"}], None, []],
        [],
        [[{"decoded": "b", "logprob": -2.0, "token": "token_id:2"}, {"decoded": "", "logprob": -3.0, "token": None}]],
    ]
    whole = pa.array(rows, pa.list_(pa.list_(entry)))
    assert depth(whole.type) == 2
    assert depth(pa.list_(entry)) == depth(pa.list_(pa.list_(pa.struct([("token", pa.int64())])))) == 0
    for first in range(4):
        take = rows_of_lists(whole.slice(first))
        for place, row in enumerate(rows[first:]):
            found = take(place)
            if row is None:
                assert found is None
                continue
            assert isinstance(found, EntryLists)
            flat = [each for lists in row for each in lists or ()]
            assert found.tokens == [each["token"] for each in flat]
            assert found.logprobs.tolist() == [each["logprob"] for each in flat]
            assert found.counts.tolist() == [len(lists or ()) for lists in row]
