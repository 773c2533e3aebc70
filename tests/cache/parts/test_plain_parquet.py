"""index.parquet is read without Parquet's own library: what that reads of a good file, and a refusal of every other."""

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdpipe.cache import layout
from kdpipe.cache.parts.arrow_files import write_parquet
from kdpipe.cache.parts.index import COLUMNS, FIELDS, sealed
from kdpipe.cache.parts.plain_parquet import read_plain_parquet
from kdpipe.cache.parts.thrift import MAX_DEPTH, CompactReader
from support.damage import fresh_cache
from support.golden import GOLDEN
from support.limits import assert_refused

INDEXES = sorted(GOLDEN.rglob(layout.INDEX))
# Of the footer's struct of a column: field 4, an int32, the codec. Then field 5, an int64.
CODEC = b"\x15\x00\x16"


def rows_of(n: int) -> dict[str, list[Any]]:
    """Columns of an index of n parts."""
    numbers = {field.name: [(1 << 63) + i for i in range(n)] for field in FIELDS if field.type == "uint64"}
    texts = {"split": ["train", "validation"] * n, "sha256": [f"{i:064x}" for i in range(n)]}
    return {"part": list(range(n)), **numbers, **{name: values[:n] for name, values in texts.items()}}


def written(n: int, notes: dict[str, str] | None = None) -> bytes:
    """The file of an index of n parts."""
    buffer = io.BytesIO()
    write_parquet(buffer, FIELDS, rows_of(n), notes or {})
    return buffer.getvalue()


@pytest.mark.parametrize("file", INDEXES, ids=lambda file: f"{file.parts[-3]}-{file.parts[-2]}")
def test_the_reader_agrees_with_pyarrow_on_every_golden_cache(file: Path) -> None:
    table = pq.read_table(file, use_threads=False)
    values, notes = read_plain_parquet(file.read_bytes(), COLUMNS, table.num_rows)
    assert values == table.to_pydict()
    assert notes == {key.decode(): value.decode() for key, value in pq.read_metadata(file).metadata.items()}


@pytest.mark.parametrize("n", [1, 2, 1000, 50_000])
def test_the_reader_agrees_with_pyarrow_on_many_pages(n: int) -> None:
    data = written(n, {"a": "b", "ü": "x" * 1000})
    values, notes = read_plain_parquet(data, COLUMNS, n)
    assert values == rows_of(n) == pq.read_table(pa.BufferReader(data), use_threads=False).to_pydict()
    assert notes == {"a": "b", "ü": "x" * 1000}


def test_a_codec_that_the_parquet_library_does_not_know_is_refused(tmp_path: Path) -> None:
    cache = fresh_cache(tmp_path / "cache")
    data = (cache / layout.INDEX).read_bytes()
    places = [place for place in range(len(data)) if data.startswith(CODEC, place)]
    assert len(places) >= len(FIELDS)
    for place in (places[0], places[-1]):
        changed = data[: place + 1] + bytes([2 * 20]) + data[place + 2 :]
        (cache / layout.INDEX).write_bytes(sealed(changed))
        assert_refused(cache, layout.INDEX)


def edit(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    """Other bytes in the place of the first of some."""

    def change(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, new, 1)

    return change


def footer_length(length: int) -> Callable[[bytes], bytes]:
    """Another length of the footer."""
    return lambda data: data[:-8] + struct.pack("<I", length) + data[-4:]


BROKEN: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "nothing": (lambda data: b"", "magic"),
    "the magic bytes alone": (lambda data: b"PAR1PAR1", "magic"),
    "other magic bytes": (lambda data: data[:-1] + b"E", "magic"),
    "a footer of 4 GB": (footer_length((1 << 32) - 1), "longer than the file"),
    "a footer of no bytes": (footer_length(0), "does not end"),
    "a footer that begins elsewhere": (footer_length(200), "type|struct|field|footer"),
    "a page of other bytes": (edit(b"train", b"trial"), "crc32"),
    "a name of another column": (edit(b"n_rows", b"n_cows"), "its columns are not those"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_not_as_it_should_be_is_refused(name: str) -> None:
    change, fragment = BROKEN[name]
    with pytest.raises(ValueError, match=fragment):
        read_plain_parquet(change(written(3)), COLUMNS, 3)


@pytest.mark.parametrize("n", [0, 2, 4, 1 << 40])
def test_a_file_of_other_rows_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        read_plain_parquet(written(3), COLUMNS, n)


@pytest.mark.slow
def test_every_single_bit_of_a_footer_can_be_wrong() -> None:
    data = written(2)
    begin = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    outcomes = {"read": 0, "refused": 0}
    for bit in range(begin * 8, len(data) * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            values, _ = read_plain_parquet(bytes(changed), COLUMNS, 2)
        except ValueError:
            outcomes["refused"] += 1
        else:
            assert values == rows_of(2)
            outcomes["read"] += 1
    assert outcomes["refused"] > outcomes["read"] / 4 > 0


def with_footer(data: bytes, footer: bytes) -> bytes:
    """A file with another footer."""
    begin = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    return data[:begin] + footer + struct.pack("<I", len(footer)) + b"PAR1"


def test_a_footer_of_many_values_is_not_unfolded() -> None:
    numbers = b"\x19\xf3" + b"\xff\xff\xff\x07" + bytes(1 << 24) + b"\x00"
    with pytest.raises(ValueError, match="its footer is longer"):
        read_plain_parquet(with_footer(written(3), numbers), COLUMNS, 3)


def test_a_page_header_of_many_values_is_not_unfolded() -> None:
    data = written(1000)
    begin = data.index(b"\x15\x00")
    with pytest.raises(ValueError, match="claims 16,777,215 values in"):
        read_plain_parquet(data[:begin] + b"\x19\xf3\xff\xff\xff\x07" + data[begin + 6 :], COLUMNS, 1000)


def test_a_column_in_pages_of_one_value_is_refused() -> None:
    sink = io.BytesIO()
    schema = pa.schema([field.to_arrow() for field in FIELDS])
    plain: dict[str, Any] = {"compression": "NONE", "use_dictionary": False, "write_statistics": False}
    pq.write_table(
        pa.table(rows_of(1000), schema=schema), sink, data_page_size=1, write_batch_size=1, store_schema=False, **plain
    )
    with pytest.raises(ValueError, match="a page holds 1 values"):
        read_plain_parquet(sink.getvalue(), COLUMNS, 1000)


STRUCTS: dict[str, tuple[bytes, str]] = {
    "no end": (b"\x15\x02", "does not end"),
    "a field twice": (b"\x15\x02\x05\x02\x02\x00", "twice"),
    "a field below zero": (b"\x05\x03\x02\x00", "below 0"),
    "an unknown type": (b"\x1d\x00", "unknown type 13"),
    "a map": (b"\x1b\x00\x00", "unknown type 11"),
    "structs without end": (b"\x1c" * 1000, "nested deeper"),
    "lists without end": (b"\x19" * 1000, "claims 1 values"),
    "a list of four billion": (b"\x19\xf5\xff\xff\xff\xff\x0f\x00", "claims 4,294,967,295 values"),
    "a text of four billion": (b"\x18\xff\xff\xff\xff\x0f\x00", "claims 4,294,967,295 bytes"),
    "a number of six bytes": (b"\x15\xff\xff\xff\xff\xff\x0f\x00", "more than 32 bits"),
    "a number of 33 bits": (b"\x15\xff\xff\xff\xff\x1f\x00", "more than 32 bits"),
    "a number of eleven bytes": (b"\x16" + b"\x80" * 10 + b"\x01\x00", "more than 64 bits"),
}


@pytest.mark.parametrize("name", STRUCTS)
def test_a_struct_that_claims_what_it_does_not_hold_is_refused(name: str) -> None:
    data, fragment = STRUCTS[name]
    with pytest.raises(ValueError, match=fragment):
        CompactReader(data, 0, len(data)).struct()


def test_a_struct_is_read_by_field_number() -> None:
    data = b"\x15\x03\x11\x12\x16\x80\x02\x18\x02hi\x19\x25\x02\x04\x1c\x15\x08\x00\x00\x99"
    reader = CompactReader(data, 0, len(data))
    assert reader.struct() == {1: -2, 2: True, 3: False, 4: 128, 5: b"hi", 6: [1, 2], 7: {1: 4}}
    assert reader.place == len(data) - 1


def test_depth_is_counted_through_lists_too() -> None:
    nested = b"\x1c" * MAX_DEPTH + b"\x00" * (MAX_DEPTH + 1)
    assert CompactReader(nested, 0, len(nested)).struct()
    with pytest.raises(ValueError, match="deeper"):
        CompactReader(b"\x1c" + nested + b"\x00", 0, len(nested) + 2).struct()
