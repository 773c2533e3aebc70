"""`kdpipe cache import`: what a person sees, what a program reads, and exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest

from kdpipe.cache.opening import open_cache
from kdpipe.cli.main import run
from support.foreign import DISTILLKIT, DISTILLKIT_IDS, word_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(word_tokenizer(tmp_path_factory.mktemp("tokenizers") / "words", DISTILLKIT_IDS))


def words(tokenizer: str, out: Path, *more: str, name: str = "recommended") -> list[str]:
    place = [str(DISTILLKIT / name), "--tokenizer", tokenizer, "--out", str(out)]
    return ["cache", "import", "--from", "distillkit", *place, *more]


def test_a_page_tells_what_was_made_and_what_nobody_knows(
    tokenizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words(tokenizer, tmp_path / "cache", "--val-fraction", "0.4", "--teacher-license", "mit")) == 0
    found = capsys.readouterr()
    cache = open_cache(tmp_path / "cache")
    for told in (
        str(cache.cache_id),
        "57, 128.0 entries per position",
        "1 - sum of the kept probabilities",
        "the teacher, which tokens",
    ):
        assert told in found.out, told
    assert "source     1 file of distillkit: row t is about token t + 1" in found.err
    assert {each.name for each in cache.manifest.plan.splits} == {"train", "validation"}
    assert cache.manifest.teacher is not None
    assert cache.manifest.teacher.license == "mit"
    assert run(["cache", "verify", str(tmp_path / "cache")]) == 0


def test_a_program_reads_one_document_and_is_told_when_nothing_was_left_to_do(
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
    ("more", "said"),
    [
        (["--columns", "tokens"], "--columns tokens is not of the form ROLE=NAME"),
        (["--columns", "a=b", "--columns", "a=c"], "--columns a=c is not of the form ROLE=NAME"),
        (["--columns", "tokens=x"], "--columns says nothing of --from distillkit"),
        (["--val-fraction", "7"], "val_fraction: input should be less than 1"),
        (["--codec", "nowhere.yaml"], "the file nowhere.yaml cannot be read"),
        (["--tail", "thick"], "Invalid value for '--tail'"),
    ],
)
def test_what_cannot_be_is_refused_in_two_lines_with_exit_2(
    more: list[str], said: str, tokenizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words(tokenizer, tmp_path / "cache", *more)) == 2
    told = capsys.readouterr().err.splitlines()[-2:]
    assert told[0].startswith("error: ")
    assert told[1].startswith("hint: ")
    assert said in told[0]
