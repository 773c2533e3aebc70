"""Tables as aligned text of a given width, Markdown, or HTML; marked cells are the best of their column.

In: a header and rows of texts. Out: lines. Text wider than the screen is split into blocks of columns, each with the
label of its rows.
"""

import html
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kdpipe.cli import console

SEPARATOR = "  "
MIN_LABEL, MAX_CELL = 14, 28
# Where stdout is no terminal and COLUMNS is not set.
FILE_COLUMNS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTable:
    """Each row starts with its label; `marked` has (row, column) of marked cells."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marked: frozenset[tuple[int, int]] = frozenset()

    def text(self, columns: int) -> Iterator[str]:
        """Lines of at most so many columns; labels and long cells keep their ends, in which names and paths differ."""
        if self.title:
            yield console.styled(self.title, "heading", sys.stdout)
        numbers = range(1, len(self.header))
        widths = {i: min(MAX_CELL, max(len(self._cell(row, i)) for row in range(-1, len(self.rows)))) for i in numbers}
        longest = max(len(row[0]) for row in (self.header, *self.rows))
        label = min(longest, max(MIN_LABEL, columns - sum(len(SEPARATOR) + width for width in widths.values())))
        for block in _blocks(widths, columns - label):
            head = SEPARATOR.join([_cut(self.header[0], label).ljust(label), *self._aligned(-1, block, widths)])
            yield console.styled(head.rstrip(), "heading", sys.stdout)
            for number, row in enumerate(self.rows):
                yield SEPARATOR.join([_cut(row[0], label).ljust(label), *self._aligned(number, block, widths)]).rstrip()

    def _aligned(self, row: int, block: Sequence[int], widths: dict[int, int]) -> Iterator[str]:
        for i in block:
            padded = f"{_cut(self._cell(row, i), widths[i]):>{widths[i]}}"
            text = padded.strip()
            yield padded.replace(text, console.styled(text, "best", sys.stdout)) if (row, i) in self.marked else padded

    def _cell(self, row: int, column: int) -> str:
        """A cell; beside marked ones, a blank keeps the numbers of a column aligned."""
        if row < 0:
            return " ".join(self.header[column].split())
        text = " ".join(self.rows[row][column].split())
        if not any((other, column) in self.marked for other in range(len(self.rows))):
            return text
        return text + ("*" if (row, column) in self.marked else " ")

    def markdown(self) -> Iterator[str]:
        if self.title:
            yield f"**{self.title}**\n"
        yield _bars(self.header)
        yield _bars(["---", *["---:"] * (len(self.header) - 1)])
        for number, row in enumerate(self.rows):
            yield _bars([f"**{text}**" if (number, i) in self.marked else text for i, text in enumerate(row)])

    def html(self) -> Iterator[str]:
        yield f"<table><caption>{html.escape(self.title)}</caption>"
        yield f"<tr>{''.join(f'<th>{html.escape(text)}</th>' for text in self.header)}</tr>"
        for number, row in enumerate(self.rows):
            cells = [f"<th>{html.escape(row[0])}</th>"]
            for i, text in enumerate(row[1:], 1):
                shown = f"<b>{html.escape(text)}</b>" if (number, i) in self.marked else html.escape(text)
                cells.append(f"<td>{shown}</td>")
            yield f"<tr>{''.join(cells)}</tr>"
        yield "</table>"


def screen_columns() -> int:
    """The width of the terminal, or COLUMNS."""
    return shutil.get_terminal_size((FILE_COLUMNS, 24)).columns


def _blocks(widths: dict[int, int], columns: int) -> Iterator[list[int]]:
    """Columns in groups that fit beside the label, at least one in each."""
    block: list[int] = []
    for i, width in widths.items():
        used = sum(len(SEPARATOR) + widths[j] for j in block)
        if block and used + len(SEPARATOR) + width > columns:
            yield block
            block = []
        block = [*block, i]
    yield block


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"...{text[3 - width :]}"


def _bars(cells: Sequence[str]) -> str:
    return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"
