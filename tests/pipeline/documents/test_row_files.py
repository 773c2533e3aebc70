"""Files of rows: every format gives the same rows in order and by position, and reports invalid rows."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdpipe.pipeline.documents import compressed_files
from kdpipe.pipeline.documents.data_sources import DataQuery, find_files
from kdpipe.pipeline.documents.delimited_files import DelimitedFile
from kdpipe.pipeline.documents.row_files import (
    CONTINUES,
    Limits,
    LinesFile,
    ListFile,
    PlainFile,
    RowFile,
    TableFile,
    open_json,
)
from kdpipe.schemas.errors import ConfigError
from support.corpora import text_rows, write_jsonl

MOST = Limits(document_bytes=10_000, row_bytes=100_000)


def write_parquet(path: Path, rows: list[dict[str, Any]], group: int = 1000) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return path


def in_format(kind: str, folder: Path, rows: list[dict[str, Any]]) -> RowFile:
    """A file of these rows, compressed where the kind has a second suffix."""
    form, _, compression = kind.partition(".")
    if form == "parquet":
        return TableFile(write_parquet(folder / "a.parquet", rows, 7), "a.parquet", MOST)
    path = folder / f"a.{form}"
    if form == "jsonl":
        write_jsonl(path, rows)
    elif form == "json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        write_delimited(path, rows, "\t" if form == "tsv" else ",")
    if compression:
        path = compressed(path, compression)
    return find_files(str(path), DataQuery(), MOST)[0]


def write_delimited(path: Path, rows: list[dict[str, Any]], delimiter: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def compressed(path: Path, kind: str) -> Path:
    data, packed = path.read_bytes(), path.with_name(f"{path.name}.{kind}")
    packed.write_bytes(gzip.compress(data) if kind == "gz" else pa.compress(data, codec="zstd", asbytes=True))
    return packed


every_format = pytest.mark.parametrize(
    "kind", ["jsonl", "json", "parquet", "csv", "tsv", "jsonl.gz", "jsonl.zst", "json.gz", "json.zst", "csv.gz"]
)


@every_format
def test_rows_are_read_in_order_and_again_by_position(kind: str, tmp_path: Path) -> None:
    rows = text_rows(30)
    if kind.startswith(("csv", "tsv")):
        rows = [{name: str(value) for name, value in row.items()} for row in rows]
    file = in_format(kind, tmp_path, rows)
    found = list(file.rows())
    assert [row.columns for row in found] == rows
    lines = [1 + row["text"].count("\n") if kind.startswith(("csv", "tsv")) else 1 for row in rows]
    first = 2 if kind.startswith(("csv", "tsv")) else 1  # the header is a line too
    assert [row.number for row in found] == np.cumsum([first, *lines[:-1]]).tolist()
    chosen = [0, 1, 5, 6, 7, 20, 29]
    assert list(file.columns_at([found[i].position for i in chosen])) == [rows[i] for i in chosen]


def test_rows_of_a_table_that_are_far_apart_are_found(tmp_path: Path) -> None:
    rows = [{"text": str(i)} for i in range(10_000)]
    file = TableFile(write_parquet(tmp_path / "a.parquet", rows, 3000), "a", MOST)
    for chosen in ([1, 2, 1023, 1024, 9000, 9999], [2999, 3000, 5999], []):
        assert [int(row["text"]) for row in file.columns_at(chosen)] == chosen


def test_unused_columns_of_a_table_are_not_read(tmp_path: Path) -> None:
    rows = [{"text": "a", "messages": [{"role": "user", "content": "b"}], "numbers": [1.5] * 3}]
    file = TableFile(write_parquet(tmp_path / "a.parquet", rows), "a", MOST)
    file.wanted = {"messages", "category"}
    assert [row.columns for row in file.rows()] == list(file.columns_at([0]))
    assert next(file.columns_at([0])) == {"messages": rows[0]["messages"]}


@every_format
def test_a_file_that_changed_since_it_was_found_is_refused(kind: str, tmp_path: Path) -> None:
    file = in_format(kind, tmp_path, text_rows(3))
    position = next(iter(file.rows())).position
    in_format(kind, tmp_path, text_rows(4))
    with pytest.raises(ConfigError, match="changed while it was read") as caught:
        list(file.columns_at([position]))
    assert "re-run" in str(caught.value.hint)


def problems(path: Path, data: bytes, row_bytes: int = 1 << 20) -> list[tuple[int, str]]:
    path.write_bytes(data)
    limits = Limits(document_bytes=10, row_bytes=row_bytes)
    return [(row.number, row.problem) for row in LinesFile(path, "a", limits).rows()]


def test_an_invalid_line_is_named_and_the_next_one_is_read(tmp_path: Path) -> None:
    data = b'{"text": "a"}\n\n{"text": \n[1]\n"a"\n3\ntrue\nnull\n{"text": "\xff"}\r\n  \n' + b"[" * 9000 + b"\n{}"
    assert problems(tmp_path / "a", data) == [
        (1, ""),
        (3, "not valid JSON (Expecting value)"),
        (4, "a list, expected an object"),
        (5, "a string, expected an object"),
        (6, "a number, expected an object"),
        (7, "a boolean, expected an object"),
        (8, "null, expected an object"),
        (9, "it is not valid UTF-8"),
        (11, "not valid JSON (RecursionError)"),
        (12, ""),
    ]


def test_a_line_of_any_length_is_skipped_in_bounded_memory(tmp_path: Path) -> None:
    long = b'{"text": "' + b"x" * 1100 + b'"}'
    for data in (long, long * 3, b"x" * 1024, b"x" * 2048):
        found = problems(tmp_path / "a", b'{"a": 1}\n' + data + b'\n{"a": 2}\n', row_bytes=1024)
        assert found == [(1, ""), (2, f"the line has {len(data) + 1:,} bytes, at most 1,024 are allowed"), (3, "")]
        rows = list(LinesFile(tmp_path / "a", "a", Limits(document_bytes=10, row_bytes=1024)).rows())
        assert [row.position for row in rows] == [0, 9, 9 + len(data) + 1]


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\n')
    file = LinesFile(path, "a", MOST)
    assert [row.columns for row in file.rows()] == list(file.columns_at([0])) == [{"text": "a"}]


def test_json_may_be_a_list_or_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}\n{"a": 2}\n', encoding="utf-8")
    assert [row.columns for row in open_json(path, "a", MOST).rows()] == [{"a": 1}, {"a": 2}]
    path.write_text(' [{"a": 1}, 2]', encoding="utf-8")
    assert [row.problem for row in open_json(path, "a", MOST).rows()] == ["", "a number, expected an object"]


@pytest.mark.parametrize(("content", "named"), [("[1, 2", "is not a JSON list"), ("3", "is not a JSON list")])
def test_an_invalid_json_file_is_refused(content: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=named):
        list(open_json(path, "a", MOST).rows())


def test_values_of_a_list_are_read_one_by_one_and_again_by_position(tmp_path: Path) -> None:
    rows = [{"text": "\u00e9\U0001f642" * n, "n": [n] * n} for n in (0, 1, 3000, 2, 9000)]
    path = tmp_path / "a.json"
    for indent in (None, 2):
        path.write_text(" " * 70 + json.dumps(rows, ensure_ascii=indent is None, indent=indent), encoding="utf-8")
        file = ListFile(path, "a", Limits(document_bytes=10, row_bytes=1 << 20))
        found = list(file.rows())
        assert [row.columns for row in found] == rows
        assert [row.number for row in found] == [1, 2, 3, 4, 5]
        assert list(file.columns_at([found[i].position for i in (1, 2, 4)])) == [rows[i] for i in (1, 2, 4)]
    path.write_text("[]", encoding="utf-8")
    assert list(ListFile(path, "a", MOST).rows()) == []


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "expected [ at byte 0"),
        (b"\0" * 100, "expected [ at byte 0"),
        (b"[1 2]", "expected a comma at byte 3"),
        (b"[1,]", "expected a value at byte 3, found ]"),
        (b"[1] x", "data after the end of the list, at byte 4"),
        (b'[{"a": }]', "Expecting value at byte 7"),
        (
            b'[{"a": "' + b"x" * 200_000 + b'"}]',
            "the value at byte 1 has more than 100,000 bytes, or is not terminated",
        ),
        (b"[[" + b"[]," * 60_000, "the value at byte 1 would take more than 400,000 bytes of memory"),
        (b"[" + b"[" * 3000 + b"]" * 3000 + b"]", "the value at byte 1 is nested too deeply"),
        (b" " * 2_000_000 + b"[1]", "more than 1,048,576 bytes of white space"),
        (b'["\xff"]', "it is not valid UTF-8"),
    ],
)
def test_a_file_that_is_not_a_bounded_list_is_refused(content: bytes, named: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        list(ListFile(path, "a", MOST).rows())
    assert named in refused.value.message


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffTwo\nlines. 🙂\n".encode())
    file = PlainFile(path, "a.txt", MOST)
    assert [row.columns for row in file.rows()] == [{"text": "Two\nlines. 🙂\n"}]
    assert list(file.columns_at([0])) == [{"text": "Two\nlines. 🙂\n"}]


def test_a_text_file_that_is_not_utf8_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xff")
    assert next(PlainFile(path, "a", MOST).rows()).problem == "it is not valid UTF-8"
    path.write_bytes("UTF-16".encode("utf-16-le") * 20)
    (row,) = PlainFile(path, "a", Limits(document_bytes=10, row_bytes=10)).rows()
    assert "NUL" in row.problem


@pytest.mark.parametrize(
    ("text", "documents"),
    [
        ("one two.\n\nthree", ["one two.\n\n", "three"]),
        ("one two.\nthree four", ["one two.\n", "three four"]),
        ("one two three", ["one two ", "three"]),
        ("ééééééé", ["ééééé", "éé"]),
        ("\ufeff🙂🙂🙂x", ["🙂", "🙂🙂x"]),
        ("x" * 10, ["x" * 10]),
        ("x" * 11, ["x" * 10, "x"]),
    ],
)
@pytest.mark.parametrize("compression", ["", "gz", "zst"])
def test_a_long_text_file_is_cut_into_documents(
    text: str, documents: list[str], compression: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8")
    path = compressed(path, compression) if compression else path
    file = PlainFile(path, "a", Limits(document_bytes=10, row_bytes=10))
    rows = list(file.rows())
    assert [row.columns and row.columns["text"] for row in rows] == documents
    assert [CONTINUES in (row.columns or {}) for row in rows] == [True] * (len(rows) - 1) + [False]
    assert list(file.columns_at([row.position for row in rows])) == [row.columns for row in rows]
    assert list(file.columns_at([rows[-1].position])) == [rows[-1].columns]


def delimited(path: Path, data: bytes, row_bytes: int = 1 << 20) -> list[tuple[int, Any]]:
    path.write_bytes(data)
    file = DelimitedFile(path, "a", Limits(document_bytes=10, row_bytes=row_bytes), delimiter=",")
    rows = list(file.rows())
    good = [row for row in rows if row.columns is not None]
    assert list(file.columns_at([row.position for row in good])) == [row.columns for row in good]
    return [(row.number, row.problem or row.columns) for row in rows]


def test_fields_are_quoted_as_in_spreadsheets(tmp_path: Path) -> None:
    data = '\ufefftext, n,\r\n"a ""b"", c\nd",1,x\r\n\r\n5" disk,,\r\nlast,é,'.encode()
    assert delimited(tmp_path / "a.csv", data) == [
        (2, {"text": 'a "b", c\nd', "n": "1"}),
        (5, {"text": '5" disk', "n": ""}),
        (6, {"text": "last", "n": "é"}),
    ]
    assert delimited(tmp_path / "a.csv", b"") == delimited(tmp_path / "a.csv", b"text\n") == []


def test_a_malformed_row_of_fields_is_named_and_the_next_one_is_read(tmp_path: Path) -> None:
    found = delimited(tmp_path / "a.csv", b'text,n\na,1,2\na\n\xff,1\n"a"b,1\nlast,1\n"open,1\n')
    assert [number for number, _ in found] == [2, 3, 4, 5, 6, 7]
    assert found[:3] == [
        (2, "3 fields, the header has 2"), (3, "1 fields, the header has 2"), (4, "it is not valid UTF-8")
    ]  # fmt: skip
    assert found[4] == (6, {"text": "last", "n": "1"})
    assert "not valid CSV" in found[3][1]
    assert "not valid CSV" in found[5][1]


def test_a_row_without_an_end_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    for data in (b'text\n"' + b"x\n" * 2000, b"text\n" + b"x" * 4000):
        with pytest.raises(ConfigError, match=r"a\.csv:\d+: a row of more than 1,024 bytes"):
            delimited(tmp_path / "a.csv", data, row_bytes=1024)
    with pytest.raises(ConfigError, match="duplicate column 'text'"):
        delimited(tmp_path / "a.csv", b"text,n,text\n")


@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.zst", "csv.gz", "csv.zst", "json.gz", "json.zst"])
def test_a_truncated_or_damaged_archive_is_refused_with_its_row(kind: str, tmp_path: Path) -> None:
    noise = "".join(map(chr, np.random.default_rng(0).integers(0x4E00, 0x9000, 40)))
    rows = [{"text": f"{number} {noise[number % 7 :]}" * 9} for number in range(3000)]
    path = tmp_path / f"a.{kind}"
    whole = (in_format(kind, tmp_path, rows), path.read_bytes())[1]
    for damaged in (whole[: len(whole) // 2], whole + b"no archive", b"no archive"):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError) as refused:
            list(find_files(str(path), DataQuery(), MOST)[0].rows())
        assert str(path) in refused.value.message
        assert " row" in refused.value.message


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_an_archive_that_expands_too_far_is_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed_files, "EXPANDED_BYTES", 1000)
    write_jsonl(path := tmp_path / "a.jsonl", [{"text": "a"}] * 200_000)
    file = find_files(str(compressed(path, kind)), DataQuery(), MOST)[0]
    with pytest.raises(ConfigError, match=rf"a\.jsonl\.{kind}, .* expands to more than"):
        list(file.rows())


def test_an_archive_is_decompressed_once_for_rows_that_follow_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def open_counted(path: str) -> Any:
        opened.append(path)
        return gzip.GzipFile(path)

    monkeypatch.setitem(compressed_files.OPENERS, ".gz", open_counted)
    monkeypatch.setattr(compressed_files, "BLOCK_BYTES", 100)
    file = in_format("jsonl.gz", tmp_path, text_rows(30))
    positions = [row.position for row in file.rows()]
    assert len(opened) == 1
    for n, first in enumerate((0, 10, 20, 5)):
        assert list(file.columns_at(positions[first : first + 5])) == text_rows(30)[first : first + 5]
        assert len(opened) == (2, 2, 2, 3)[n]
    both = [file.columns_at(positions[:9]), file.columns_at(positions[:9])]
    assert [list(pair) for pair in zip(*both, strict=True)] == [[row, row] for row in text_rows(9)]


def test_a_cell_of_a_table_that_is_not_utf8_is_a_bad_row(tmp_path: Path) -> None:
    offsets = pa.py_buffer(b"".join(i.to_bytes(4, "little") for i in (0, 1, 2, 3)))
    text = pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"a\xffc"))
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": text}), path)
    rows = list(TableFile(path, "a", MOST).rows())
    assert [(row.columns, row.problem) for row in rows] == [
        ({"text": "a"}, ""),
        (None, "it is not valid UTF-8"),
        ({"text": "c"}, ""),
    ]


def test_an_invalid_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(ConfigError, match="cannot be read as Parquet"):
        list(TableFile(path, "a", MOST).rows())


def test_a_deleted_file_is_reported(tmp_path: Path) -> None:
    file = in_format("jsonl", tmp_path, text_rows(2))
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"a\.jsonl cannot be read: No such file"):
        list(file.rows())


def test_a_row_that_became_invalid_is_refused(tmp_path: Path) -> None:
    """As when a file is rewritten within a tick of the clock, at the same length."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": \n{}\n')
    with pytest.raises(ConfigError, match=r"a\.jsonl at byte 0: not valid JSON"):
        list(LinesFile(path, "a", MOST).columns_at([0]))
    offsets = pa.py_buffer(b"".join(i.to_bytes(4, "little") for i in (0, 1)))
    pq.write_table(pa.table({"t": pa.StringArray.from_buffers(1, offsets, pa.py_buffer(b"\xff"))}), tmp_path / "b")
    with pytest.raises(ConfigError, match="row 1: it is not valid UTF-8"):
        list(TableFile(tmp_path / "b", "b", MOST).columns_at([0]))


def test_an_unreadable_file_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = in_format("jsonl", tmp_path, text_rows(2))

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigError, match=r"a\.jsonl cannot be read: Permission denied"):
        list(file.rows())


def test_a_damaged_table_is_reported(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", text_rows(500))
    data = bytearray(path.read_bytes())
    data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="cannot be read: in row group 1 a page header has no sizes"):
        list(TableFile(path, "a", MOST).rows())
