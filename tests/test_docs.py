"""The documents keep their word: commands in them exist, with those options, and links lead somewhere."""

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

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDED = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def commands(page: Path) -> Iterator[list[str]]:
    """Every make and kdpipe command line of a page: lines of its sh blocks, and code within a line."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()] + re.findall(r"`([^`\n]+)`", text)
    for line in lines:
        words = shlex.split(line, comments=True)
        if words and words[0] in ("make", "kdpipe"):
            yield words


def targets() -> set[str]:
    """The Makefile's targets."""
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def variables() -> set[str]:
    """The Makefile's variables that a person may set."""
    return set(re.findall(r"^([A-Z_]+) \?=", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def problem(words: list[str]) -> str | None:
    """Why a command line would be refused, if it would."""
    if words[0] == "make":
        named = [word for word in words[1:] if "=" not in word]
        set_here = [word.split("=")[0] for word in words[1:] if "=" in word]
        unknown = (set(named) - targets()) | (set(set_here) - variables())
        return f"make knows no {sorted(unknown)}" if unknown else None
    name, rest = "", words[1:]
    while rest and rest[0] in SURFACE[name][0]:
        name, rest = f"{name} {rest[0]}".strip(), rest[1:]
    is_group = name == "" or SURFACE[name][0]
    if is_group and rest and not rest[0].startswith("-"):
        return f"kdpipe {name} has no command {rest[0]}"
    options = {word.split("=")[0] for word in rest if word.startswith("--")}
    unknown = options - SURFACE[name][1] - {"--help", "--debug"}
    return f"kdpipe {name} has no {sorted(unknown)}" if unknown else None


@pytest.mark.parametrize("page", COMMANDED, ids=lambda page: page.name)
def test_every_command_on_a_page_exists(page: Path) -> None:
    found = list(commands(page))
    assert found
    assert not [(words, why) for words in found if (why := problem(words)) is not None]


@pytest.mark.parametrize("line", ["make supper", "make demo COLOR=red", "kdpipe --no-such-option", "kdpipe supper"])
def test_a_command_that_does_not_exist_would_be_noticed(line: str) -> None:
    assert problem(line.split()) is not None


def test_the_readme_names_the_two_commands_that_do_everything() -> None:
    assert {"demo", "test"} <= {words[1] for words in commands(ROOT / "README.md") if words[0] == "make"}


@every_page
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    inner = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert not [link for link in inner if not (page.parent / link).exists()]


def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    make_cache(tmp_path / "teacher-cache")
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    assert blocks
    for block in blocks:
        program = [sys.executable, "-W", "error", "-c", block]
        done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
