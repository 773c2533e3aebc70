"""docs/cache-format.md does not drift: its tables are compared with records, layout and columns."""

import json
import re
from typing import Any

import pytest

from kdpipe.cache import layout
from kdpipe.cache.format.invariants import MAX_TOKEN_BYTES
from kdpipe.cache.format.zarr_json import GROUP, grids
from kdpipe.cache.parts import index, sequences, text
from kdpipe.cache.parts.arrow_files import Field
from kdpipe.schemas import strict_json
from kdpipe.schemas.arrays import (
    LARGEST_CODE,
    MAX_VECTOR_CHUNK_BYTES,
    MINUS_INFINITY,
    MISSING,
    Column,
    CountQuantizer,
    IdArray,
    RowArray,
    log_z_column,
)
from kdpipe.schemas.manifest import MAX_TABLE_BYTES, Manifest
from kdpipe.schemas.part import MAX_PART_FILES, PartRecord
from kdpipe.schemas.target_kinds import MAX_ENTRIES
from support.kinds import KINDS, kind_manifest
from support.specification import block, record_tables, sections, table, type_in_words

PAGE = sections()
RECORDS = record_tables()
ID, ROW = IdArray(), RowArray(columns=tuple(Column(name=name, quantizer=CountQuantizer()) for name in "abc"))


def schemas() -> dict[str, dict[str, Any]]:
    """The JSON schema of every record of a cache."""
    found: dict[str, dict[str, Any]] = {}
    for model in (Manifest, PartRecord):
        schema = model.model_json_schema()
        found |= {model.__name__: schema} | schema["$defs"]
    return found


def cells(section: str) -> list[list[str]]:
    """A table's rows, without the marks of code."""
    return [[cell.replace("`", "") for cell in row] for row in table(PAGE[section])]


def test_the_page_has_a_table_for_every_record() -> None:
    assert RECORDS.keys() == schemas().keys()


@pytest.mark.parametrize("name", sorted(schemas()))
def test_a_table_has_the_keys_of_its_record_with_type_and_bounds(name: str) -> None:
    keys = schemas()[name]["properties"]
    assert [row[:2] for row in RECORDS[name]] == [[f"`{key}`", type_in_words(keys[key])] for key in keys]
    assert all(row[2] for row in RECORDS[name])


def test_the_page_names_every_file_of_a_cache() -> None:
    part = layout.part_dir(0).replace("00000", "NNNNN")
    two, one = layout.array_shard("row").replace("row", "ARRAY"), layout.array_shard("id").replace("id", "ARRAY")
    due = {
        layout.MANIFEST,
        layout.INDEX,
        layout.table_file("NAME"),
        f"{layout.TOKENIZER}/NAME",
        f"{layout.WORK}/",
        layout.journal_file(0).replace("00000", "NNNNN"),
    }
    inner = [layout.PART_RECORD, layout.SEQUENCES, layout.TEXT, f"{layout.TARGETS}/{layout.ZARR_JSON}"]
    inner += [layout.array_metadata("ARRAY"), one, two]
    names = {row[0] for row in cells("Files")}
    assert names == due | {f"{part}/{name}" for name in inner}
    assert {name.partition("/")[0] for name in names} == layout.TOP_LEVEL


@pytest.mark.parametrize("name", KINDS)
def test_the_page_lists_every_file_of_a_part(name: str) -> None:
    manifest = kind_manifest(name)
    files = layout.part_files(manifest, dict.fromkeys(layout.ARRAY_NAMES, 1))
    shards = {row[0].partition("NNNNN/")[2]: row[1] for row in cells("Files")}
    for file in files:
        array = file.split("/")[1] if file.count("/") > 1 else ""
        place = file.replace(f"/{array}/", "/ARRAY/") if array else file
        assert place in shards, file
        if "/c/" in place:
            assert array in shards[place]
    assert len(files) <= MAX_PART_FILES


@pytest.mark.parametrize("name", KINDS)
def test_the_arrays_have_the_shapes_chunks_and_codecs_of_the_page(name: str) -> None:
    manifest = kind_manifest(name)
    arrays = {row[0]: row[1:] for row in cells("Arrays")}
    assert tuple(arrays) == layout.ARRAY_NAMES
    template = block(PAGE["zarr.json"], "json")
    for array, grid in grids(manifest, 1000, 700, 500).items():
        spec = getattr(manifest.arrays, array)
        known = {"R": 1000, "E": 700, "E + D": 1200, "D": 500, "C": len(manifest.arrays.row.columns), "1": 1}
        known |= {key: value for key, value in spec if isinstance(value, int)}
        kind, shape, chunk, stored = arrays[array]
        if array == "logprob":
            shape = shape.partition("with draw_values ")[2] if manifest.targets.draw_values else shape.partition(",")[0]
        is_plain = stored == "plain"
        codec = {"name": "bytes"}
        if not is_plain:
            codec = {"name": "numcodecs.pcodec", "configuration": {"level": spec.level}}  # type: ignore[dict-item]
        lengths, sizes = _numbers(shape, known), _numbers(chunk, known)
        whole = [-(-length // size) * size for length, size in zip(lengths, sizes, strict=True)]
        values = {"SHARD": whole, "CHUNK": sizes, "SHAPE": lengths, "TYPE": kind, "BYTES": codec}
        filled = template
        for word, value in values.items():
            filled = re.sub(rf"\b{word}\b", json.dumps(value), filled)
        assert strict_json.canonical(json.loads(filled)) == grid.to_json()


def _numbers(cell: str, known: dict[str, int]) -> list[int]:
    return [known[word.strip()] for word in cell.strip("[]").split(",")]


def test_the_page_has_the_zarr_json_of_the_group() -> None:
    assert f"`{GROUP.decode().strip()}`" in PAGE["zarr.json"]


@pytest.mark.parametrize("name", KINDS)
def test_the_columns_stand_in_the_order_of_the_page_under_their_quantizers(name: str) -> None:
    targets = kind_manifest(name).targets
    is_there = {
        "always": True,
        "kinds with entries": targets.has_entries,
        "kinds with draws": targets.has_draws,
        "tail known": targets.tail_known,
        "tail known, target_temperature not 1": targets.tail_known and targets.target_temperature != 1,
        "entropy": targets.entropy,
        "every kind but none": targets.keep.kind != "none",
        "boundary": targets.boundary,
    }
    due: list[tuple[str, str]] = []
    for column, quantizer, there, _ in cells("Columns"):
        if column == "log_z@T":
            due += [(log_z_column(temperature), quantizer) for temperature in targets.temperatures]
        elif is_there[there]:
            due.append((column, quantizer))
    assert due == [(column.name, column.quantizer.kind) for column in kind_manifest(name).arrays.row.columns]


def _arrow(field: Field) -> str:
    kind = f"fixed_size_binary[{'W' if field.name == 'pooled' else field.width}]" if field.width else field.type
    return f"list of {'nullable ' if field.nullable else ''}{kind}" if field.listed else kind


def test_the_page_has_the_columns_of_sequences_arrow() -> None:
    manifest = kind_manifest("threshold")
    due = [(field.name, _arrow(field)) for field in sequences.fields(manifest)]
    stated = [(row[0], row[1]) for row in cells("sequences.arrow")]
    n = len(stated) - 1
    assert due[:n] == stated[:n]
    assert stated[n] == ("column:NAME", "list of nullable TYPE")
    for column, (name, kind) in zip(manifest.data.columns, due[n:], strict=True):
        assert (name, kind) == (f"column:{column.name}", f"list of nullable {column.type}")


def test_the_page_has_the_columns_of_text_arrow_and_of_the_index() -> None:
    for section, fields in (("text.arrow", text.FIELDS), ("index.parquet", index.FIELDS)):
        assert [row[:2] for row in cells(section)] == [[field.name, _arrow(field)] for field in fields]


def test_the_page_has_the_tables_of_every_kind() -> None:
    named = {row[0] for row in cells("Tables")}
    found = {table.name for name in KINDS for table in kind_manifest(name).tables}
    assert named == {re.sub(r"_\d+", "_LAYER", name) for name in found}


def test_limits_and_special_codes_stand_on_the_page() -> None:
    for section, words in (
        ("Files", f"at most {MAX_PART_FILES} files"),
        ("JSON", f"more than {strict_json.MAX_DEPTH} levels, more than {strict_json.MAX_KEYS:,} keys in an object"),
        ("JSON", f"more than {strict_json.MAX_BYTES >> 20} MiB (part.json: {layout.MAX_RECORD_BYTES >> 20} MiB)"),
        ("`Manifest`", f"at most 2^{MAX_TABLE_BYTES.bit_length() - 1} bytes"),
        ("`PartRecord`", f"at most {MAX_ENTRIES:,} times"),
        ("`LogOddsQuantizer`", f"code {MISSING} is NaN"),
        ("`LogOddsQuantizer`", f"code {MINUS_INFINITY} is minus infinity"),
        ("`LogOddsQuantizer`", f"{LARGEST_CODE} is the last"),
        ("Columns", f"chunks of {ROW.chunk_rows:,} rows and {ID.chunk_entries:,} entries, level {ID.level}"),
        ("`VectorArray`", f"is at most 2^{MAX_VECTOR_CHUNK_BYTES.bit_length() - 1}"),
        ("index.parquet", f"{index.MAX_ROW_BYTES} bytes per row and {index.MAX_FOOTER_BYTES:,} more"),
        ("What a reader checks", f"at most 2^{sequences.MAX_SEQUENCE_ENTRIES.bit_length() - 1} entries per sequence"),
        ("What a reader checks", f"`token_bytes` at most {MAX_TOKEN_BYTES:,}"),
        ("text.arrow", f"at most 2^{text.MAX_FRAME_BYTES.bit_length() - 1} bytes"),
    ):
        assert words in " ".join(PAGE[section].split()), words


def test_the_spelling_of_json_is_that_of_the_page() -> None:
    stated = re.findall(r"`([0-9][0-9.e+-]+)`", PAGE["JSON"])
    assert stated == [strict_json.canonical(float(word)).decode().strip() for word in stated]
    assert strict_json.canonical({"b": '\u00e9\x01\n"\\\x7f', "a": [1, None]}) == (
        '{"a":[1,null],"b":"\u00e9\\u0001\\n\\"\\\\\x7f"}\n'.encode()
    )
