"""docs/index.md lists every page, docs/troubleshooting.md quotes messages as they are."""

import ast
import re
from collections.abc import Iterator

import pytest

from support.source import ROOT, modules

DOCS = ROOT / "docs"
HOLE = "..."


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
