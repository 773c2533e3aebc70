"""The two environments that caches go between: this one, and the newest that `make test` sets up beside it.

In: .venv-newest, made by the Makefile from requirements-newest.txt. Out: its interpreter, the pins of either, and a
program run under one of them.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.source import ROOT

NEWEST = ROOT / ".venv-newest"
ABSENT = (
    "there is no second environment: `make test` sets up .venv-newest where it finds Python 3.12 or later; "
    "install one, or name it: make test NEWEST=/path/to/python3.13"
)


def newest_python(folder: Path = NEWEST) -> Path:
    """The interpreter of the second environment; without one a test is skipped, and fails in CI."""
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if (folder / ".installed").is_file():
        return python
    if os.environ.get("CI"):
        pytest.fail(ABSENT)
    pytest.skip(ABSENT)


def pinned(name: str) -> dict[str, str]:
    """The versions that a file of pins states."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def under(python: Path, program: Path, *words: object) -> None:
    """Run a program to its end; a warning is an error there too."""
    command = [str(python), "-W", "error", str(program), *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), "PYTHONSAFEPATH": "1"}
    run = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
