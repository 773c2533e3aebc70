"""Data sources: a file, a folder, a glob; missing and unreadable ones."""

import re
from pathlib import Path

import pytest

from kdpipe.pipeline.documents.data_sources import DataQuery, find_files
from kdpipe.pipeline.documents.row_files import Limits, LinesFile, ListFile, PlainFile
from kdpipe.schemas.errors import ConfigError
from support.corpora import text_rows, write_jsonl

MOST = Limits(document_bytes=10_000, row_bytes=10_000)


def names(data: Path | str, split: str | None = None) -> list[str]:
    return [file.name for file in find_files(str(data), DataQuery(split=split), MOST)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jsonl", "deep/a.jsonl", "train-00001-of-00002.jsonl", ".git/c.jsonl", ".hidden.jsonl"):
        write_jsonl(tmp_path / name, text_rows(1))
    (tmp_path / "z.txt").write_text("a text", encoding="utf-8")
    (tmp_path / "l.json").write_text("[]", encoding="utf-8")
    (tmp_path / "README.md").write_text("no data", encoding="utf-8")
    return tmp_path


def test_a_folder_is_read_sorted_and_recursively_without_hidden_files(folder: Path) -> None:
    files = find_files(str(folder), DataQuery(), MOST)
    assert [file.name for file in files] == ["b.jsonl", "deep/a.jsonl", "l.json", "train-00001-of-00002.jsonl", "z.txt"]
    assert [type(file) for file in files[-3:]] == [ListFile, LinesFile, PlainFile]


def test_a_glob_is_read_sorted(folder: Path) -> None:
    assert names(folder / "*.jsonl") == ["b.jsonl", "train-00001-of-00002.jsonl"]
    assert names(folder / "**" / "*.jsonl") == ["b.jsonl", "deep/a.jsonl", "train-00001-of-00002.jsonl"]


def test_a_file_is_called_by_its_name(folder: Path) -> None:
    assert names(folder / "deep" / "a.jsonl") == ["a.jsonl"]


def test_a_split_selects_the_files_with_its_name(folder: Path) -> None:
    assert names(folder, "train") == ["train-00001-of-00002.jsonl"]
    assert names(folder, "deep") == ["deep/a.jsonl"]


@pytest.mark.parametrize("data", ["", "b.jsonl"])
def test_an_unknown_split_is_refused_with_the_file_names(data: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file of .* 'test' .*b\.jsonl") as caught:
        names(folder / data, "test")
    assert "omit --data-split" in str(caught.value.hint)


@pytest.mark.parametrize("data", ["missing.jsonl", "missing/of/all", "./missing", "*.jsonl"])
def test_missing_data_are_reported(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(data)):
        names(data)


def test_a_mistyped_path_is_not_looked_up_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no such data: data/slip"):
        names("data/slip")


def test_an_empty_folder_is_refused_with_the_supported_formats(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no data files in") as caught:
        names(tmp_path)
    assert ".jsonl, .ndjson, .json, .parquet, .csv, .tsv, .txt, .md" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "named", "hint"),
    [
        ("a.jsonl.zip", "is a .zip file; supported formats: .jsonl, .ndjson, .json, .parquet", "decompress it"),
        ("a.tar.gz", "is a .tar file", "decompress it"),
        ("a.parquet.gz", "compressed inside", "decompress it"),
        ("a.arrow", "is a .arrow file", "convert it"),
        ("a.py", "is a .py file", "--text-files '*.py'"),
        ("a.py.gz", "is a .py file", "--text-files '*.py'"),
        ("corpus", "is a file without a suffix", "--text-files 'corpus'"),
    ],
)
def test_an_unreadable_format_is_refused_with_the_readable_ones(
    name: str, named: str, hint: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ConfigError, match=re.escape(named)) as caught:
        names(tmp_path / name)
    assert hint in str(caught.value.hint)


def test_archives_in_a_folder_are_not_skipped(folder: Path) -> None:
    (folder / "more.zip").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"more\.zip is a \.zip file"):
        names(folder)


def test_source_files_are_read_as_text_where_they_match(folder: Path) -> None:
    for name in ("deep/b.py", "c.py.gz", "notes.md", "d.rs"):
        (folder / name).write_bytes(b"")
    query = DataQuery(text_files=("*.py", "l.json"))
    files = find_files(str(folder), query, MOST)
    assert {file.name for file in files if isinstance(file, PlainFile)} == {
        "c.py.gz", "deep/b.py", "l.json", "notes.md", "z.txt"
    }  # fmt: skip
    assert names(folder / "notes.md") == ["notes.md"]
    assert [file.name for file in find_files(str(folder / "*.py*"), query, MOST)] == ["c.py.gz"]


def test_a_description_of_the_data_is_read_only_by_its_name(folder: Path) -> None:
    assert "README.md" not in names(folder)
    assert names(folder / "README.md") == ["README.md"]
    assert "README.md" in [file.name for file in find_files(str(folder), DataQuery(text_files=("README*",)), MOST)]
