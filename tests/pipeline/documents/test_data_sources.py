"""Data sources: a file, a folder, a glob; missing and unreadable ones."""

import re
from pathlib import Path

import pytest

from kdpipe.pipeline.documents.data_sources import find_files
from kdpipe.pipeline.documents.row_files import Limits, LinesFile, ListFile, PlainFile
from kdpipe.schemas.errors import ConfigError
from support.corpora import text_rows, write_jsonl

MOST = Limits(document_bytes=10_000, row_bytes=10_000)


def names(data: Path | str, split: str | None = None) -> list[str]:
    return [file.name for file in find_files(str(data), split, MOST)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jsonl", "deep/a.jsonl", "train-00001-of-00002.jsonl", ".git/c.jsonl", ".hidden.jsonl"):
        write_jsonl(tmp_path / name, text_rows(1))
    (tmp_path / "z.txt").write_text("a text", encoding="utf-8")
    (tmp_path / "l.json").write_text("[]", encoding="utf-8")
    (tmp_path / "README.md").write_text("no data", encoding="utf-8")
    return tmp_path


def test_a_folder_is_read_sorted_and_recursively_without_hidden_files(folder: Path) -> None:
    files = find_files(str(folder), None, MOST)
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
    assert ".jsonl, .json, .parquet, .txt" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "named", "hint"),
    [
        ("a.jsonl.gz", "is a .gz file; supported formats: .jsonl, .json, .parquet, .txt", "decompress it"),
        ("a.csv", "is a .csv file", "convert it"),
        ("corpus", "is a file without a suffix", "add the suffix"),
    ],
)
def test_an_unreadable_format_is_refused_with_the_readable_ones(
    name: str, named: str, hint: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ConfigError, match=re.escape(named)) as caught:
        names(tmp_path / name)
    assert hint in str(caught.value.hint)


def test_compressed_data_in_a_folder_are_not_skipped(folder: Path) -> None:
    (folder / "more.jsonl.gz").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"more\.jsonl\.gz is a \.gz file"):
        names(folder)
