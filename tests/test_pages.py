"""README.md, docs/index.md, docs/troubleshooting.md: figures are measured, commands run, pages and messages exist."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdpipe.cli import main
from support.source import ROOT, modules
from support.stage_one import make_inputs

DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
HOLE = "..."


def section(name: str) -> str:
    """The text of the README under a heading."""
    return README.partition(f"\n## {name}\n")[2].partition("\n## ")[0]


def figures(text: str) -> set[str]:
    """Numbers with decimals, and percentages."""
    return set(re.findall(r"\d[\d,]*\.\d+|\d+(?= %)", text))


def test_every_figure_of_the_readme_was_measured() -> None:
    measured = (DOCS / "experiments.md").read_text(encoding="utf-8")
    shown = figures(section("Results")) | figures(section("Try it"))
    assert len(shown) > 20
    assert shown <= set(re.findall(r"\d[\d,]*\.\d+|\d+(?= %)", measured))


def test_each_row_of_the_results_is_a_row_of_the_experiments() -> None:
    lines = (DOCS / "experiments.md").read_text(encoding="utf-8").splitlines()
    rows = [figures(line) for line in section("Results").split("What a step costs")[0].splitlines() if "|" in line]
    rows = [row for row in rows if row]
    assert [len(row) for row in rows] == [2, 3, 3]
    assert all(any(row <= figures(re.sub(r" \|", " %|", line)) for line in lines) for row in rows)


@pytest.mark.slow
def test_the_three_commands_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_inputs(tmp_path)
    (tmp_path / "teacher").rename(tmp_path / "TEACHER")
    monkeypatch.chdir(tmp_path)
    commands = [line for line in section("Install").splitlines() if line.startswith("kdpipe ")]
    assert len(commands) == 3
    for line in commands:
        words = shlex.split(line.replace("STUDENT", "tiny"), comments=True)[1:]
        small = {"cache-teacher": ["--val-fraction", "0.3"], "train": ["--max-steps", "3", "--batch-size", "2"]}
        assert main.run([*words, *small.get(words[0], [])]) == 0, line


def test_the_index_lists_every_page_and_its_tree_too() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")} - {"index.md"}
    links = {link for link in re.findall(r"\]\(([^)#]+)\)", index) if not link.startswith("..")}
    assert links == pages
    tree = re.findall(r"─ ([a-z-]+/?) {2,}", index.split("```")[1])
    in_tree = {page.split("/")[0] + "/" if "/" in page else page.removesuffix(".md") for page in pages}
    assert sorted(tree) == sorted(in_tree)


def quoted() -> list[str]:
    """The messages in the first column of the tables."""
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    cells = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ")]
    return [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]


def _texts(tree: ast.AST) -> Iterator[str]:
    """The strings of a module, with `...` for what is filled in."""
    pieces = {id(piece) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for piece in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(piece.value) if isinstance(piece, ast.Constant) else HOLE for piece in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in pieces:
            yield node.value


def test_the_messages_of_the_troubleshooting_page_exist() -> None:
    texts = [text for module in modules() for text in _texts(ast.parse(module.text))]
    texts += [path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "snapshots").glob("*.txt")]
    messages = quoted()
    assert len(messages) > 15
    patterns = {message: re.compile(".*".join(map(re.escape, message.split(HOLE)))) for message in messages}
    assert [message for message, pattern in patterns.items() if not any(map(pattern.search, texts))] == []


@pytest.mark.parametrize("text", ["f'no part {number} in {folder!r}'", "'no part ' f'{a}' ' in ' f'{b}'"])
def test_a_message_is_found_with_its_holes(text: str) -> None:
    assert "no part ... in ..." in list(_texts(ast.parse(f"'''other'''\n{text}")))
