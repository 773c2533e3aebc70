"""`kdpipe cache merge`: what it answers, to people and to programs, and how it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kdpipe.cache.opening import open_cache
from kdpipe.cli.main import run
from support.tiny import SMALL, make_cache, unsynced


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two caches, a and b."""
    with unsynced():
        make_cache(tmp_path / "a")
        make_cache(tmp_path / "b", replace(SMALL, documents={"train": 5}, documents_per_part=5))
    return tmp_path


def test_a_merge_reports_its_output(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["cache", "merge", str(folder / "a"), str(folder / "b"), "--out", str(folder / "c")]
    assert run(words) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "parts       5: 5 reused unchanged, 0 rewritten; 5 from this run" in shown.out
    assert run([*words, "--json"]) == 0
    shown = capsys.readouterr()
    answer = json.loads(shown.out)
    assert answer["cache_id"] == open_cache(folder / "c").cache_id
    assert (answer["action"], answer["parts"], answer["documents"]) == (
        "merge",
        {"planned": 5, "present": 5, "made": 0},
        21,
    )
    assert shown.err == "5 of 5 parts are already there\n"


def test_an_overlap_exits_4_and_can_be_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = [str(folder / "a"), str(folder / "b")]
    assert run(["cache", "merge", *both, "--out", str(folder / "c")]) == 0
    words = ["cache", "merge", str(folder / "b"), str(folder / "c"), "--out", str(folder / "d")]
    assert run(words) == 4
    assert "5 of the 21 documents of" in capsys.readouterr().err
    assert run([*words, "--overlap", "keep-first"]) == 0
    assert "documents   21, 5 of the sources dropped" in capsys.readouterr().out


def test_quiet_commands_print_only_their_result(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["cache", "copy", str(folder / "a"), str(folder / "copy")]
    assert run([*words, "--quiet"]) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and "cache_id" in printed.out
    assert run(words) == 0
    assert capsys.readouterr().err == "nothing to copy\n"
