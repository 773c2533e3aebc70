"""`kdpipe doctor`: lines, JSON and exit codes, for the machine, for models and a cache, and for a run."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdpipe.cli.doctor import line
from kdpipe.cli.main import run
from kdpipe.pipeline import doctor
from kdpipe.pipeline.diagnosis import setup_checks
from kdpipe.schemas.doctor_report import Check, passed, problem


@pytest.mark.parametrize(("columns", "most"), [(40, 60), (80, 80), (120, 120), (300, 120)])
def test_a_line_fits_the_terminal(columns: int, most: int) -> None:
    text = line(problem("file system", "word " * 40, "what to do " * 20), columns)
    assert most - 10 < max(map(len, text.splitlines())) <= most
    assert text.startswith("problem  file system")


@pytest.fixture
def reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "hub", lambda: passed("hub", "reachable"))


@pytest.mark.usefixtures("reachable")
def test_the_machine_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--out", str(tmp_path / "new"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    names = {check["name"] for check in report["checks"]}
    assert {"versions", "cores", "memory", "file system", "disk space", "extras", "hub", "devices"} <= names
    assert not list(tmp_path.iterdir())


def test_a_problem_ends_with_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "check_run", lambda folder: [problem("loss", "not falling", "lower --lr")])
    assert run(["doctor", "run"]) == 1
    assert "lower --lr" in capsys.readouterr().out


@pytest.mark.usefixtures("reachable")
def test_names_of_models_and_a_cache_are_checked_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(cache: str | None, teacher: str | None, student: str | None, _: object) -> Iterator[Check]:
        yield problem("student", f"{student} does not fit {cache} of {teacher}", "use another")

    monkeypatch.setattr(setup_checks, "check_setup", check)
    words = ["doctor", "--from-cache", "c", "--teacher", "t", "--student", "s", "--out", str(tmp_path)]
    assert run(words) == 1
    assert "s does not fit c of t" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["run", "--student", "tiny"], "--student"),
        (["run", "--out", "runs"], "--out"),
        (["--student", "tiny"], "--from-cache"),
        (["no-run"], "no-run"),
    ],
)
def test_options_that_exclude_each_other_are_refused_before_any_check(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["doctor", *words]) == 2
    captured = capsys.readouterr()
    assert named in captured.err and not captured.out


@pytest.mark.usefixtures("reachable")
def test_a_broken_torch_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "kdpipe.pipeline.diagnosis.device_checks", None)
    assert run(["doctor", "--out", str(tmp_path)]) == 1
    assert "torch" in capsys.readouterr().out
