"""`kdpipe cache subset`: conditions as they are typed."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdpipe.cache.opening import open_cache
from kdpipe.cli.main import run
from support.tiny import make_cache, unsynced


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small cache; the disk is not waited for."""
    path = tmp_path_factory.mktemp("caches") / "cache"
    with unsynced():
        make_cache(path)
        yield path


def test_conditions_are_listed_in_the_history(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["cache", "subset", str(cache), "--out", str(tmp_path / "new"), "--split", "train", "--parts", "0:2"]
    words += ["--documents", ":7", "--by", "likelihood", "--at-least", "-9", "--at-most", "-0.5", "--json"]
    assert run(words) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["action"] == "subset"
    assert answer["sources"] == [open_cache(cache).cache_id]
    assert open_cache(tmp_path / "new").manifest.history[-1].note == (
        "split train; parts 0:2; documents :7; likelihood: at least -9.0, at most -0.5"
    )
    assert run(["cache", "subset", str(cache), "--out", str(tmp_path / "en"), "--where", "language=en"]) == 0
    assert "of the sources dropped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--parts", "3"], "--parts 3 is not of the form A:B"),
        (["--parts", ":"], "--parts : is not of the form A:B"),
        (["--documents", "5:5"], "--documents 5:5 is empty"),
        (["--where", "language"], "--where language is not of the form COLUMN=VALUE"),
        (["--by", "likelihood", "--lowest", "nan"], "--lowest nan is not a finite number"),
        (["--by", "likelihood", "--at-most", "inf"], "--at-most inf is not a finite number"),
    ],
)
def test_what_is_typed_wrong_exits_2(
    words: list[str], message: str, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["cache", "subset", str(cache), "--out", str(tmp_path / "new"), *words]) == 2
    assert f"error: {message}\n" in capsys.readouterr().err
