"""`kdpipe cache export`: what a person sees, what a program reads, and exit codes."""

import json
from pathlib import Path

import pytest

from kdpipe.cache.opening import open_cache
from kdpipe.cli.main import run
from support.tiny import make_cache


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("caches") / "whole"
    make_cache(path)
    return path


def test_a_page_lists_what_was_written_and_what_was_left_out(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["cache", "export", str(cache), "--to", "axolotl", "--out", str(tmp_path / "out")]) == 0
    found = capsys.readouterr().out
    n = open_cache(cache).n_positions
    for reported in (
        "4, 4 from this run",
        f"16 documents, {n:,} positions",
        "draws (samples of the tail)",
        "load_dataset(",
    ):
        assert reported in found, reported


def test_a_program_reads_one_document(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["cache", "export", str(cache), "--to", "parquet", "--out", str(tmp_path / "out"), "--split", "validation"]
    assert run([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["form"], found["files"], found["rows"]) == ("parquet", 1, len(open_cache(cache, "validation")))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["validation-00003.parquet"]


def test_what_cannot_be_is_refused(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "letter").write_text("dear")
    assert run(["cache", "export", str(cache), "--to", "parquet", "--out", str(tmp_path)]) == 2
    assert "letter, which is not part of this export" in capsys.readouterr().err
    assert run(["cache", "export", str(cache), "--to", "parquet", "--out", ""]) == 2
    assert "out: string should have at least 1 character" in capsys.readouterr().err
    assert run(["cache", "export", str(cache), "--to", "csv", "--out", str(tmp_path / "out")]) == 2
    assert run(["cache", "export", str(tmp_path / "nowhere"), "--to", "parquet", "--out", str(tmp_path / "out")]) == 2
