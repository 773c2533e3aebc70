"""README, CONTRIBUTING, CHANGELOG and docs: commands and options exist, and links resolve."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.commands import SURFACE
from support.source import ROOT
from support.tiny import make_cache

TOP = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "AGENTS", "SECURITY")]
PAGES = [*TOP, *sorted((ROOT / "docs").rglob("*.md"))]
PAGES_WITH_COMMANDS = [path for path in TOP if path.name != "CHANGELOG.md"]

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def commands(page: Path) -> Iterator[list[str]]:
    """Every make and kdpipe command line of a page, in sh blocks and inline code."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()] + re.findall(r"`([^`\n]+)`", text)
    for line in lines:
        words = shlex.split(line, comments=True)
        if words and words[0] in ("make", "kdpipe"):
            yield words


def targets() -> set[str]:
    """The targets of the Makefile."""
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def variables() -> set[str]:
    """The variables of the Makefile that a user may set."""
    return set(re.findall(r"^([A-Z_]+) \?=", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def problem(words: list[str]) -> str | None:
    """Why a command line is invalid, or None."""
    if words[0] == "make":
        goals = [word for word in words[1:] if "=" not in word]
        assigned = [word.split("=")[0] for word in words[1:] if "=" in word]
        unknown = (set(goals) - targets()) | (set(assigned) - variables())
        return f"make has no {sorted(unknown)}" if unknown else None
    name, rest = "", words[1:]
    while rest and rest[0] in SURFACE[name][0]:
        name, rest = f"{name} {rest[0]}".strip(), rest[1:]
    is_group = name == "" or SURFACE[name][0]
    if is_group and rest and not rest[0].startswith("-"):
        return f"kdpipe {name} has no command {rest[0]}"
    options = {word.split("=")[0] for word in rest if word.startswith("--")}
    unknown = options - SURFACE[name][1] - {"--help", "--debug"}
    return f"kdpipe {name} has no {sorted(unknown)}" if unknown else None


@pytest.mark.parametrize("page", PAGES_WITH_COMMANDS, ids=lambda page: page.name)
def test_every_command_on_a_page_exists(page: Path) -> None:
    lines = list(commands(page))
    assert lines
    assert not [(words, reason) for words in lines if (reason := problem(words)) is not None]


@pytest.mark.parametrize("line", ["make supper", "make demo COLOR=red", "kdpipe --no-such-option", "kdpipe supper"])
def test_a_command_that_does_not_exist_is_detected(line: str) -> None:
    assert problem(line.split()) is not None


def test_the_readme_names_make_demo_and_make_test() -> None:
    assert {"demo", "test"} <= {words[1] for words in commands(ROOT / "README.md") if words[0] == "make"}


@every_page
def test_every_link_within_the_repository_resolves(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert not [link for link in local if not (page.parent / link).exists()]


def test_the_python_example_of_the_readme_runs(tmp_path: Path) -> None:
    make_cache(tmp_path / "teacher-cache")
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    assert blocks
    for block in blocks:
        program = [sys.executable, "-W", "error", "-c", block]
        done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
