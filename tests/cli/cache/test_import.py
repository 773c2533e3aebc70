"""`kdpipe cache import`: what a person sees, what a program reads, and exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest

from kdpipe.cache.opening import open_cache
from kdpipe.cli.main import run
from support.interop_sources import DISTILLKIT, DISTILLKIT_IDS, word_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(word_tokenizer(tmp_path_factory.mktemp("tokenizers") / "words", DISTILLKIT_IDS))


def words(tokenizer: str, out: Path, *more: str, name: str = "recommended") -> list[str]:
    place = [str(DISTILLKIT / name), "--tokenizer", tokenizer, "--out", str(out)]
    return ["cache", "import", "--from", "distillkit", *place, *more]


def test_the_report_lists_the_result_and_what_the_source_lacks(
    tokenizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words(tokenizer, tmp_path / "cache", "--val-fraction", "0.4", "--teacher-license", "mit")) == 0
    found = capsys.readouterr()
    cache = open_cache(tmp_path / "cache")
    for text in (str(cache.cache_id), "57", "128.0", "teacher", "loss mask"):
        assert text in found.out, text
    assert "1 file of distillkit: row t predicts token t + 1" in found.err
    assert {each.name for each in cache.manifest.plan.splits} == {"train", "validation"}
    assert cache.manifest.teacher is not None
    assert cache.manifest.teacher.license == "mit"
    assert run(["cache", "verify", str(tmp_path / "cache")]) == 0


def test_json_output_is_one_document_and_counts_new_parts(
    tokenizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents: list[Any] = []
    for _ in range(2):
        assert run(words(tokenizer, tmp_path / "cache", "--json", name="legacy")) == 0
        documents.append(json.loads(capsys.readouterr().out))
    assert [each["parts_made"] for each in documents] == [1, 0]
    assert documents[0]["cache_id"] == documents[1]["cache_id"] == open_cache(tmp_path / "cache").cache_id
    assert (documents[0]["tail"], documents[0]["documents"]) == ("unknown", 3)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--columns", "tokens"], "--columns tokens is not of the form ROLE=NAME"),
        (["--columns", "a=b", "--columns", "a=c"], "--columns a=c is not of the form ROLE=NAME"),
        (["--columns", "tokens=x"], "--columns does not apply to --from distillkit"),
        (["--val-fraction", "7"], "val_fraction: input should be less than 1"),
        (["--codec", "nowhere.yaml"], "the file nowhere.yaml cannot be read"),
        (["--tail", "thick"], "Invalid value for '--tail'"),
    ],
)
def test_what_cannot_be_is_refused_in_two_lines_with_exit_2(
    more: list[str], named: str, tokenizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words(tokenizer, tmp_path / "cache", *more)) == 2
    lines = capsys.readouterr().err.splitlines()[-2:]
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("hint: ")
    assert named in lines[0]
