"""Parquet files of strangers with changed footers, page headers and values: read, or refused in words."""

import io
import os
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdpipe.cache.parts.arrow_files import ParquetLists, ParquetRows
from kdpipe.cache.parts.parquet_footer import read_footer
from kdpipe.schemas.errors import ConfigError
from support.fuzz import Reader, fuzz

# Of `make soak`, a hundred inputs each.
SOAK_BATCHES = 40
WRITTEN: dict[str, dict[str, Any]] = {
    "dictionaries": {},
    "version 2": {"compression": "zstd", "data_page_version": "2.0", "row_group_size": 20},
    "plain": {"compression": "none", "use_dictionary": False, "store_schema": False, "write_statistics": False},
    "deltas": {
        "compression": "gzip",
        "use_dictionary": False,
        "column_encoding": {"text": "DELTA_BYTE_ARRAY", "n": "DELTA_BINARY_PACKED", "f": "BYTE_STREAM_SPLIT"},
    },
}


def small_parquet(**settings: Any) -> bytes:
    """Rows of texts, numbers, times, truth values, lists and conversations."""
    n = 40
    columns = {
        "text": [f"a b {i % 7}" for i in range(n)],
        "n": list(range(n)),
        "f": np.arange(n) / 3,
        "time": pa.array([None if i % 3 else i for i in range(n)], pa.timestamp("us")),
        "bool": [bool(i % 2) for i in range(n)],
        "width": pa.array([b"abcd"] * n, pa.binary(4)),
        "ids": [[1, 2, i] for i in range(n)],
        "messages": [[{"role": "user", "content": "x" * i}] for i in range(n)],
    }
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, **settings)
    return sink.getvalue()


def read_all(path: Path) -> None:
    """All rows of a file, as stage one and as `import` read them."""
    list(ParquetRows(str(path), 1 << 20).rows())
    list(ParquetLists(str(path), ["ids"]).rows_at())


def parquet_reader(name: str, folder: Path, *, footer_only: bool) -> Reader:
    """The footer of a file, or all of it; its length is put right."""
    data = small_parquet(**WRITTEN[name])
    begin = len(data) - 8 - int.from_bytes(data[-8:-4], "little") if footer_only else 0
    numbers = count()

    def read(changed: bytes) -> None:
        length = len(changed).to_bytes(4, "little") + b"PAR1"
        path = folder / f"{next(numbers)}.parquet"
        path.write_bytes(data[:begin] + changed + length if footer_only else changed)
        try:
            read_all(path)
        finally:
            path.unlink()

    seed = data[begin:-8] if footer_only else data
    return Reader(f"parquet_{name.replace(' ', '_')}_{footer_only}", read, (seed,))


@pytest.mark.parametrize("footer_only", [True, False])
@pytest.mark.parametrize("name", WRITTEN)
def test_a_changed_file_is_read_or_refused(name: str, footer_only: bool, tmp_path: Path) -> None:
    outcomes = fuzz(parquet_reader(name, tmp_path, footer_only=footer_only), tmp_path, range(1))
    assert outcomes["refused"] > 20


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("footer_only", [True, False])
@pytest.mark.parametrize("name", WRITTEN)
def test_thousands_of_changed_files_are_read_or_refused(name: str, footer_only: bool, tmp_path: Path) -> None:
    fuzz(parquet_reader(name, tmp_path, footer_only=footer_only), tmp_path, range(1, 1 + SOAK_BATCHES))


@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_that_is_whole_is_read_as_the_library_reads_it(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(small_parquet(**WRITTEN[name]))
    assert list(ParquetRows(str(path), 1 << 20).rows()) == pq.read_table(path).to_pylist()
    metadata = pq.read_metadata(path)
    with path.open("rb") as file:
        footer = read_footer(file, os.path.getsize(path))
    assert [leaf.path for leaf in footer.leaves] == [
        metadata.schema.column(i).path for i in range(metadata.num_columns)
    ]
    assert [group.n_rows for group in footer.groups] == [
        metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)
    ]


@pytest.mark.slow
def test_millions_of_equal_rows_from_few_bytes_are_refused(tmp_path: Path) -> None:
    path, n = tmp_path / "a.parquet", 50_000_000
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int8)), pa.array(["a"]))
    pq.write_table(pa.table({"text": texts}), path, compression="zstd", store_schema=False, row_group_size=1 << 20)
    assert path.stat().st_size < 1_000_000
    for opened in (lambda: ParquetRows(str(path), 1 << 20), lambda: ParquetLists(str(path), ["text"])):
        with pytest.raises(ConfigError, match=r"it has 50,000,000 rows in [0-9,]+ bytes"):
            opened()


@pytest.mark.slow
def test_values_of_all_row_groups_together_are_bounded(tmp_path: Path) -> None:
    path, n = tmp_path / "a.parquet", 1 << 24
    lists = pa.ListArray.from_arrays(pa.array([0, n], pa.int32()), pa.array(np.zeros(n, np.int32)))
    with pq.ParquetWriter(path, pa.schema([pa.field("ids", lists.type)]), compression="zstd") as writer:
        for _ in range(2):
            writer.write_table(pa.table({"ids": lists}))
    with pytest.raises(ConfigError, match="it unfolds to 33,554,432 values"):
        list(ParquetLists(str(path), ["ids"]).rows_at())


def test_texts_in_lists_that_repeat_the_one_before_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"messages": [["a" * 1000] * 1000], "text": ["b" * 1000]})
    settings: dict[str, Any] = {"use_dictionary": False, "version": "2.6"}
    for column in ("messages.list.element", "text"):
        pq.write_table(table, path, column_encoding={column: "DELTA_BYTE_ARRAY"}, **settings)
        if column == "text":
            assert list(ParquetRows(str(path), 1 << 20).rows()) == table.to_pylist()
        else:
            with pytest.raises(ConfigError, match="DELTA_BYTE_ARRAY"):
                list(ParquetRows(str(path), 1 << 20).rows())


@pytest.mark.parametrize(("depth", "messages"), [(20, ""), (70, "deeper than 60 levels")])
def test_columns_nested_too_deep_are_refused(depth: int, messages: str, tmp_path: Path) -> None:
    path, array = tmp_path / "a.parquet", pa.array([1])
    for _ in range(depth):
        array = pa.StructArray.from_arrays([array], ["a"])
    pq.write_table(pa.table({"a": array}), path, store_schema=False)
    if messages:
        with pytest.raises(ConfigError, match=messages):
            ParquetRows(str(path), 1 << 20)
    else:
        assert len(list(ParquetRows(str(path), 1 << 20).rows())) == 1


def test_a_date_that_python_does_not_have_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a", "b"], "on": pa.array([0, -800_000], pa.date32())}), path)
    good, bad = ParquetRows(str(path), 1 << 20).rows()
    assert isinstance(good, dict) and isinstance(bad, str)
    assert bad.startswith("it has a value that Python has no type for")


@pytest.mark.slow
def test_texts_in_lists_stay_in_a_dictionary_only_where_they_repeat_far(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for text, n, kept in (("a" * 1000, 1000, False), ("a" * (1 << 20), 100, True)):
        for codec in ("none", "snappy", "gzip", "brotli", "zstd", "lz4"):
            pq.write_table(pa.table({"messages": [[text] * n, ["b"]]}), path, compression=codec)
            file = ParquetRows(str(path), 1 << 20)
            first = next(iter(file._batches(0)))
            assert pa.types.is_dictionary(first.column(0).type.value_type) == kept
            assert first.column(0).to_pylist()[0][-1] == text
