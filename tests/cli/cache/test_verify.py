"""`kdpipe cache verify`: good caches answer 0, bad ones 3 with every problem named, for people and for programs."""

import json
import shutil
from pathlib import Path

import pytest

from kdpipe.cli.main import run
from support.tiny import make_cache


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A complete small cache and its cache_id."""
    path = tmp_path_factory.mktemp("caches") / "good"
    return path, make_cache(path)


@pytest.fixture
def damaged(good: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of it in which one bit of part 1 is flipped."""
    copy = Path(shutil.copytree(good[0], tmp_path / "damaged"))
    sequences = copy / "parts" / "00001" / "sequences.arrow"
    data = bytearray(sequences.read_bytes())
    data[len(data) // 2] ^= 1
    sequences.write_bytes(data)
    return copy


@pytest.mark.parametrize("level", ["fast", "full", "deep"])
def test_a_good_cache_is_called_good_at_every_level(
    level: str, good: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["cache", "verify", str(good[0]), "--level", level]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(f"{good[0]}: good (4 parts, ")
    assert shown.out.endswith(f"level {level})\n")
    assert shown.err == ""


def test_the_document_for_programs_holds_the_identity(
    good: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["cache", "verify", str(good[0]), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {"ok", "level", "problems"} <= set(answer)
    assert (answer["ok"], answer["level"], answer["problems"]) == (True, "full", [])
    assert answer["cache_id"] == good[1]


def test_a_damaged_cache_exits_3_and_the_file_is_named(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache", "verify", str(damaged)]) == 3
    shown = capsys.readouterr()
    assert "parts/00001/sequences.arrow" in shown.out
    assert "  -> " in shown.out
    assert shown.out.splitlines()[-1].startswith(f"{damaged}: 1 problem (")
    assert shown.err == ""


def test_a_damaged_cache_answers_programs_with_one_document_and_exit_3(
    damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["cache", "verify", str(damaged), "--json"]) == 3
    answer = json.loads(capsys.readouterr().out)
    assert not answer["ok"]
    assert [(p["part"], set(p)) for p in answer["problems"]] == [(1, {"part", "file", "what", "do"})]


def test_a_folder_that_is_not_there_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache", "verify", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_the_bare_group_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache"]) == 0
    assert capsys.readouterr().out.startswith("Usage: kdpipe cache")
