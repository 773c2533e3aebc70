"""`kdpipe cache verify`: good caches answer 0, bad ones 3 with every problem named, for people and for programs."""

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import kdpipe.pipeline
from kdpipe.cli.main import run
from kdpipe.schemas.verify_report import AgainstReport, NatsDifference, Problem
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
    assert shown.out.startswith(f"{good[0]}: OK (4 parts, ")
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


AGREES = AgainstReport(
    ok=True,
    teacher="teacher",
    documents=3,
    positions=1200,
    noise=NatsDifference(max_nats=2e-5, mean_nats=1e-6),
    difference=NatsDifference(max_nats=3e-5, mean_nats=2e-6),
    bound_nats=0.001,
    problems=(),
)


@pytest.fixture
def requested(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the story that asks the teacher was given; it answers with `report` of it."""
    seen: dict[str, Any] = {"report": AGREES}

    def verify_against(
        cache: str, teacher: str, sample: int, progress: Any, *, trusted: bool, devices: str, retry_policy: Any
    ) -> Any:
        seen.update(cache=cache, teacher=teacher, sample=sample, progress=progress, devices=devices)
        return seen["report"]

    module = ModuleType("kdpipe.pipeline.verify_against")
    module.verify_against = verify_against  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(kdpipe.pipeline, "verify_against", module, raising=False)
    return seen


def test_a_teacher_that_agrees_is_reported_with_its_noise(
    good: tuple[Path, str], requested: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["cache", "verify", str(good[0]), "--level", "fast", "--against", "teacher"]) == 0
    assert (requested["cache"], requested["teacher"], requested["sample"]) == (str(good[0]), "teacher", 32)
    assert capsys.readouterr().out.splitlines()[:4] == [
        "  teacher     teacher, 1,200 positions of 3 documents",
        "  difference  mean 2e-06 nats, max 3e-05 nats",
        "  noise       mean 1e-06 nats, max 2e-05 nats: the teacher at two batch shapes",
        "  accepted    up to 0.001 nats mean per document",
    ]


def test_a_teacher_that_differs_exits_3(
    good: tuple[Path, str], requested: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    problem = Problem(part=2, file="parts/00002", what="differs by 3 nats", do="make it again")
    requested["report"] = AGREES.model_copy(update={"ok": False, "problems": (problem,)})
    words = ["cache", "verify", str(good[0]), "--against", "teacher", "--sample", "3"]
    assert run(words) == 3
    assert requested["sample"] == 3
    shown = capsys.readouterr().out
    assert shown.startswith("parts/00002: differs by 3 nats\n  -> make it again\n")
    assert ": 1 problem (" in shown.splitlines()[-1]
    assert run([*words, "--json"]) == 3
    answer = json.loads(capsys.readouterr().out)
    assert (answer["ok"], len(answer["problems"]), answer["against"]["bound_nats"]) == (False, 1, 0.001)


def test_no_teacher_is_run_for_a_damaged_cache(
    damaged: Path, requested: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["cache", "verify", str(damaged), "--against", "teacher"]) == 3
    assert "teacher" not in requested


@pytest.mark.parametrize("words", [["--sample", "3"], ["--trust-remote-code"]])
def test_what_is_about_a_teacher_needs_one(
    good: tuple[Path, str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["cache", "verify", str(good[0]), *words]) == 2
    assert "hint: give --against TEACHER too\n" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache", "verify", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_the_bare_group_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache"]) == 0
    assert capsys.readouterr().out.startswith("Usage: kdpipe cache")
