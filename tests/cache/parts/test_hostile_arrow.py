"""Arrow, Parquet and text that were made to do harm, all checksums right: bombs, bad offsets, other schemas."""

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdpipe.cache import layout
from kdpipe.cache.parts.arrow_files import Field
from kdpipe.cache.parts.index import FIELDS, sealed
from support.damage import edit_json, fresh_cache, reseal, write_index_file
from support.limits import assert_refused, judged

PART = layout.part_dir(0)
RECORD = f"{PART}/{layout.PART_RECORD}"
SEQUENCES = f"{PART}/{layout.SEQUENCES}"
TEXT = f"{PART}/{layout.TEXT}"
BILLION = 1 << 30


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache of the default kind, to be edited."""
    return fresh_cache(tmp_path / "cache")


def batch_of(file: Path) -> Any:
    """The record batch of an Arrow file."""
    with pa.ipc.open_file(pa.BufferReader(file.read_bytes())) as reader:
        return reader.get_batch(0)


def write_batches(file: Path, batches: list[Any], **options: Any) -> None:
    """An Arrow file of these batches."""
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, batches[0].schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for batch in batches:
            writer.write_batch(batch)
    file.write_bytes(sink.getvalue())


def with_column(batch: Any, name: str, values: Any, kind: Any = None, nullable: bool = False) -> Any:
    """A batch with another column in the place of one."""
    place = batch.schema.get_field_index(name)
    field = pa.field(name, kind or batch.schema.field(place).type, nullable=nullable)
    arrays = [values if i == place else batch.column(i) for i in range(batch.num_columns)]
    return pa.RecordBatch.from_arrays(arrays, schema=batch.schema.set(place, field))


def retyped(name: str, kind: Any) -> Callable[[Any], Any]:
    """A column of another type."""
    return lambda batch: with_column(batch, name, batch.column(name).cast(kind), kind)


def with_list(batch: Any, name: str, values: Any) -> Any:
    """The same lists with other values."""
    column = batch.column(name)
    return with_column(batch, name, pa.ListArray.from_arrays(column.offsets, values, type=column.type))


def with_null_list(batch: Any) -> Any:
    """A missing list whose values exist: flattening the column would shift all that follow."""
    column = batch.column("column:year")
    mask = pa.array([i == 0 for i in range(len(column))])
    values = pa.ListArray.from_arrays(column.offsets, column.values, type=column.type, mask=mask)
    return with_column(batch, "column:year", values)


def with_null_value(batch: Any) -> Any:
    """A document without a number."""
    numbers = batch.column("documents").values.to_pylist()
    values = pa.array([None, *numbers[1:]], pa.uint64())
    return with_list(batch, "documents", values)


def numbers(name: str, change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A column with other numbers."""

    def edit(batch: Any) -> Any:
        column = batch.column(name)
        is_list = pa.types.is_list(column.type)
        flat = column.values if is_list else column
        new = pa.array(change(flat.to_numpy().copy()), flat.type)
        return with_list(batch, name, new) if is_list else with_column(batch, name, new)

    return edit


def put(place: int, value: int) -> Callable[[Any], Any]:
    """One other number."""

    def change(values: Any) -> Any:
        values[place] = value
        return values

    return change


def other_lists(batch: Any) -> Any:
    """One column divides its values otherwise than the rest."""
    column = batch.column("digests")
    offsets = column.offsets.to_numpy().copy()
    offsets[1:-1] = offsets[-1]
    return with_column(batch, "digests", pa.ListArray.from_arrays(pa.array(offsets), column.values, type=column.type))


SCHEMAS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a wider type": (retyped("n_rows", pa.uint64()), "its columns are not those of its cache"),
    "a signed type": (retyped("n_rows", pa.int32()), "its columns are not those"),
    "a dictionary": (
        lambda b: with_column(b, "n_rows", b.column("n_rows").dictionary_encode(), pa.dictionary("int32", "uint32")),
        "its columns are not those",
    ),
    "large lists": (retyped("documents", pa.large_list(pa.field("item", pa.uint64(), False))), "its columns are not"),
    "nullable": (lambda b: with_column(b, "n_rows", b.column("n_rows"), nullable=True), "its columns are not those"),
    "a column too many": (lambda b: b.append_column("x", b.column(0)), "its columns are not those of its cache"),
    "a column too few": (lambda b: b.select(b.schema.names[:-1]), "its columns are not those of its cache"),
    "another order": (lambda b: b.select(b.schema.names[::-1]), "its columns are not those of its cache"),
    "notes": (lambda b: b.replace_schema_metadata({"pandas": "x" * 1000}), "its columns are not those of its cache"),
    "an extension": (
        lambda b: pa.RecordBatch.from_arrays(
            b.columns,
            schema=b.schema.set(
                0, b.schema.field(0).with_metadata({"ARROW:extension:name": "arrow.py_extension_type"})
            ),
        ),
        "its columns are not those",
    ),
    "a missing list": (with_null_list, "column:year has missing values"),
    "a missing number": (with_null_value, "documents has missing values"),
    "fewer rows": (lambda b: b.slice(1), "rows, part.json has"),
    "lists of other lengths": (other_lists, "digests has other list lengths"),
    "rows that add up to more": (numbers("n_rows", lambda v: v + 1), "n_rows adds up to"),
    "a sequence without rows": (numbers("n_rows", put(0, 0)), "n_rows adds up to"),
    "rows beyond all": (numbers("n_rows", put(0, (1 << 32) - 1)), "n_rows adds up to"),
    "a longer sequence": (
        numbers("n_rows", lambda v: np.array([v[0] + v[1] - 1, 1, *v[2:]])),
        "longer than the planned",
    ),
    "entries beyond all": (numbers("exact_start", put(-1, (1 << 64) - 1)), "exact_start is beyond"),
    "entries that fall": (numbers("exact_start", lambda v: v[::-1].copy()), "exact_start does not ascend from 0"),
    "entries of another row": (numbers("exact_start", put(1, 1)), "do not agree with"),
    "too many entries": (numbers("exact_start", lambda v: v * 0), "do not agree with"),
    "a document start outside": (
        numbers("document_starts", lambda v: np.where(v, 1 << 20, v)),
        "document starts do not ascend",
    ),
    "a first document start": (numbers("document_starts", put(0, 1)), "does not begin with a document"),
    "a document of another part": (numbers("documents", put(0, 4)), "a document is outside the 4 of its part"),
    "a document beyond all": (numbers("documents", put(0, (1 << 64) - 1)), "a document is outside the 4 of its part"),
}


@pytest.mark.many
@pytest.mark.parametrize("name", SCHEMAS)
def test_sequences_that_differ_from_the_part_record_are_refused(cache: Path, name: str) -> None:
    edit, fragment = SCHEMAS[name]
    write_batches(cache / SEQUENCES, [edit(batch_of(cache / SEQUENCES))])
    reseal(cache)
    assert_refused(cache, fragment)


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_compressed_arrow_is_refused_before_it_grows(cache: Path, codec: str) -> None:
    batch = batch_of(cache / TEXT)
    bomb = pa.array([bytes(100 << 20)] * batch.num_rows, pa.binary())
    write_batches(cache / TEXT, [with_column(batch, "frame", bomb)], compression=codec)
    assert (cache / TEXT).stat().st_size < 1 << 20
    reseal(cache)
    assert_refused(cache, "something else than one uncompressed record batch")


def test_a_second_record_batch_is_refused(cache: Path) -> None:
    write_batches(cache / SEQUENCES, [batch_of(cache / SEQUENCES)] * 2)
    reseal(cache)
    assert_refused(cache, "more than one record batch")


@pytest.mark.many
@pytest.mark.parametrize("number", [-1, 5, 1 << 20, (1 << 31) - 1, -(1 << 31)])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_arrow_offsets_outside_their_values_are_refused(cache: Path, number: int, place: int) -> None:
    file = cache / SEQUENCES
    data = bytearray(file.read_bytes())
    offsets = batch_of(file).column("documents").offsets.to_numpy()
    found = [i for i in range(0, len(data) - len(offsets.tobytes()), 8) if data.startswith(offsets.tobytes(), i)]
    assert found
    for at in found:
        struct.pack_into("<i", data, at + 4 * place, number)
    file.write_bytes(data)
    reseal(cache)
    verdict = judged(cache)
    assert verdict.code == verdict.verify_code == 3, verdict
    assert layout.SEQUENCES in verdict.message


def test_a_string_that_is_not_utf_8_is_refused(cache: Path) -> None:
    file = cache / SEQUENCES
    data = file.read_bytes()
    file.write_bytes(data.replace(b"books", b"boo\xffs"))
    assert file.read_bytes() != data
    reseal(cache)
    assert_refused(cache, "is not the Arrow file it should be")


def text_file(cache: Path, frames: list[bytes], lengths: list[list[int]]) -> None:
    """A text.arrow of these frames, and as many in the record."""
    schema = batch_of(cache / TEXT).schema
    columns = [pa.array(frames, schema.field(0).type), pa.array(lengths, schema.field(1).type)]
    write_batches(cache / TEXT, [pa.RecordBatch.from_arrays(columns, schema=schema)])
    edit_json(cache / RECORD, lambda r: r.update(n_text_frames=len(frames)))
    reseal(cache)


def zstd(data: bytes) -> bytes:
    """A frame."""
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


FRAMES: dict[str, tuple[Callable[[], list[bytes]], list[list[int]], str]] = {
    "a frame that claims a gigabyte": (lambda: [zstd(b"abcd")], [[BILLION, 0, 0, 0]], "claims 1,073,741,824 bytes"),
    "lengths beyond all": (lambda: [zstd(b"abcd")], [[(1 << 32) - 1] * 4], "a frame claims"),
    "a frame that grows": (lambda: [zstd(bytes(256 << 20))], [[1, 1, 1, 1]], "does not decompress"),
    "a frame that is shorter": (lambda: [zstd(b"abc")], [[1, 1, 1, 1]], "does not decompress"),
    "no frame at all": (lambda: [b"abcd"], [[1, 1, 1, 1]], "does not decompress"),
    "an empty frame": (lambda: [b""], [[1, 1, 1, 1]], "does not decompress"),
    "other bytes than UTF-8": (lambda: [zstd(b"ab\xffd")], [[1, 1, 1, 1]], "a text is not UTF-8"),
    "half a character each": (lambda: [zstd("é".encode() * 2)], [[1, 1, 1, 1]], "a text is not UTF-8"),
    "a text too few": (lambda: [zstd(b"abc")], [[1, 1, 1]], "holds 3 texts for 4 documents"),
}


@pytest.mark.many
@pytest.mark.parametrize("name", FRAMES)
def test_text_that_is_not_what_it_claims_is_refused(cache: Path, name: str) -> None:
    frames, lengths, fragment = FRAMES[name]
    text_file(cache, frames(), lengths)
    assert_refused(cache, fragment)


def notes_of(cache: Path) -> dict[str, str]:
    """The notes of the index."""
    return {
        key.decode(): value.decode() for key, value in (pq.read_metadata(cache / layout.INDEX).metadata or {}).items()
    }


def parquet_index(cache: Path, table: Any, **options: Any) -> None:
    """An index that another program wrote, with the notes of ours."""
    notes = notes_of(cache)
    sink = io.BytesIO()
    plain: dict[str, Any] = {
        "compression": "NONE",
        "use_dictionary": False,
        "write_statistics": False,
        "store_schema": False,
    }
    with pq.ParquetWriter(sink, table.schema, **(plain | options)) as writer:
        for batch in table.to_batches(max_chunksize=options.get("rows", 1 << 20)):
            writer.write_batch(batch)
        writer.add_key_value_metadata(notes)
    (cache / layout.INDEX).write_bytes(sealed(sink.getvalue()))


INDEXES: dict[str, tuple[dict[str, Any], str]] = {
    "compressed": ({"compression": "zstd"}, "is compressed, or of an unknown codec"),
    "with dictionaries": ({"use_dictionary": True}, "or has a dictionary"),
    "with shared prefixes": ({"column_encoding": {"sha256": "DELTA_BYTE_ARRAY"}}, "a page is not plain"),
    "with lengths apart": ({"column_encoding": {"sha256": "DELTA_LENGTH_BYTE_ARRAY"}}, "a page is not plain"),
    "with pages of version 2": ({"data_page_version": "2.0"}, "page"),
    "with statistics": ({"write_statistics": True}, "page header"),
}


def index_table(cache: Path) -> Any:
    """The rows of the index."""
    return pa.Table.from_batches(
        [pq.read_table(cache / layout.INDEX, use_threads=False).combine_chunks().to_batches()[0]],
        schema=pa.schema([field.to_arrow() for field in FIELDS]),
    )


@pytest.mark.parametrize("name", INDEXES)
def test_an_index_whose_pages_could_grow_is_refused(cache: Path, name: str) -> None:
    options, fragment = INDEXES[name]
    parquet_index(cache, index_table(cache), **options)
    assert_refused(cache, fragment)


def test_an_index_written_plainly_by_another_program_is_good(cache: Path) -> None:
    parquet_index(cache, index_table(cache))
    assert judged(cache).verify_code == 0


Columns = dict[str, list[Any]]


def rows_edit(name: str, value: Any) -> Callable[[Columns], object]:
    """Another value in the first row of the index."""
    return lambda columns: columns[name].__setitem__(0, value)


def longer(columns: Columns) -> None:
    """The last row twice."""
    for values in columns.values():
        values.append(values[-1])


def shorter(columns: Columns) -> None:
    """The last row is missing."""
    for values in columns.values():
        values.pop()


FALSE_INDEXES: dict[str, tuple[Callable[[Columns], object], str]] = {
    "another digest": (rows_edit("sha256", "0" * 64), "another cache_id"),
    "a malformed digest": (rows_edit("sha256", "x" * 5000), "another cache_id"),
    "another split": (rows_edit("split", "validation"), "row 0 is not of part 0"),
    "another part": (rows_edit("part", 2), "row 0 is not of part 0"),
    "sequences without end": (rows_edit("n_sequences", 1 << 60), "row 0 is not of part 0"),
    "rows without end": (rows_edit("n_rows", (1 << 64) - 1), "row 0 is not of part 0"),
    "a sequence more": (rows_edit("n_sequences", 9), "counts otherwise than index.parquet"),
    "a position less": (rows_edit("n_positions", 1), "counts otherwise than index.parquet"),
    "a row too many": (longer, "3 rows in 9 columns, expected are 2 in 9"),
    "a row too few": (shorter, "1 rows in 9 columns, expected are 2 in 9"),
}


@pytest.mark.many
@pytest.mark.parametrize("name", FALSE_INDEXES)
def test_a_false_index_is_refused(cache: Path, name: str) -> None:
    edit, fragment = FALSE_INDEXES[name]
    columns = index_table(cache).to_pydict()
    edit(columns)
    write_index_file(cache, FIELDS, columns, {k: v for k, v in notes_of(cache).items() if k != "kdpipe.sha256"})
    assert_refused(cache, fragment)


def test_an_index_with_other_columns_is_refused(cache: Path) -> None:
    columns = index_table(cache).to_pydict()
    columns["part"] = [str(part) for part in columns["part"]]
    write_index_file(cache, [Field(name="part", type="string"), *FIELDS[1:]], columns, {"kdpipe.cache_id": "x"})
    assert_refused(cache, "its columns are not those of an index")


def test_an_index_that_is_much_too_large_is_refused_unread(cache: Path) -> None:
    with (cache / layout.INDEX).open("ab") as file:
        file.truncate(1 << 34)
    assert_refused(cache, "bytes, at most 66,048 are allowed")


def test_a_pooled_state_with_a_bad_scale_is_refused(cache: Path) -> None:
    batch = batch_of(cache / SEQUENCES)
    column = batch.column("pooled")
    rows = [bytes([*value[:8], 0, 0, 0xC0, 0x7F, *value[12:]]) for value in column.values.to_pylist()]
    write_batches(cache / SEQUENCES, [with_list(batch, "pooled", pa.array(rows, column.type.value_type))])
    reseal(cache)
    assert_refused(cache, "the scale of a vector")


@pytest.mark.parametrize("messages", [0, 1])
def test_an_arrow_file_that_ends_before_its_record_batch_is_refused(cache: Path, messages: int) -> None:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, batch_of(cache / SEQUENCES).schema):
        pass
    (cache / SEQUENCES).write_bytes(sink.getvalue() if messages else b"ARROW1\0\0" + b"\0" * 16 + b"ARROW1")
    reseal(cache)
    assert_refused(cache, "is not the Arrow file it should be")
