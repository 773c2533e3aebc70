"""Records in one line, and as a small HTML table for notebooks.

The table has no colors of its own, so that it is readable on white and on dark pages; all text is escaped.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from pydantic import BaseModel

MAX_LINE = 160
MAX_TEXT, MAX_CELL = 40, 160
MAX_TABLE_ROWS = 20
CELL = "text-align:left"


def one_line(name: str, values: Mapping[str, Any]) -> str:
    """`EvalReport(cross_entropy=3.21, positions=1204, ...)`: as many of the values as fit."""
    line, end = "", f"{name}("
    for key, value in values.items():
        if value is None:
            continue
        piece = f"{key}={_short(value)}"
        if len(end) + len(line) + len(piece) > MAX_LINE:
            return f"{end}{line}, ...)"
        line = f"{line}, {piece}" if line else piece
    return f"{end}{line})"


def _short(value: Any) -> str:
    if isinstance(value, BaseModel):
        return f"{type(value).__name__}(...)"
    if isinstance(value, str):
        return repr(_cut(value, MAX_TEXT))
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, Mapping):
        return f"<{len(value)} keys>" if len(value) > 1 else repr(dict(value))[:MAX_TEXT]
    if isinstance(value, Sequence):
        text = repr(value)
        return text if len(text) <= MAX_TEXT else f"<{len(value):,} values>"
    return repr(value)


def html_table(title: str, values: Mapping[str, Any]) -> str:
    """Values as a table of two columns; lists of records follow as tables of their own."""
    facts = {key: value for key, value in values.items() if not _is_empty(value)}
    lists = {key: value for key, value in facts.items() if _is_list_of_records(value)}
    rows = [[key, _text(value)] for key, value in facts.items() if key not in lists]
    tables = [_table(rows, escape(title), heads=None)]
    for key, records in lists.items():
        cells = [_flat(dict(record)) for record in records[:MAX_TABLE_ROWS]]
        heads = list(dict.fromkeys(name for row in cells for name in row))
        more = f" (first {MAX_TABLE_ROWS} of {len(records):,})" if len(records) > MAX_TABLE_ROWS else ""
        tables.append(_table([[row.get(name, "") for name in heads] for row in cells], escape(key) + more, heads))
    return "".join(tables)


def _table(rows: Sequence[Sequence[str]], title: str, heads: Sequence[str] | None) -> str:
    """A table with a header row, or without heads one title above all columns."""
    lines = [f'<th style="{CELL}" colspan="9">{title}</th>'] if heads is None else [f'<td style="{CELL}">{title}</td>']
    if heads is not None:
        lines.append("".join(f'<th style="{CELL}">{escape(head)}</th>' for head in heads))
    lines += ["".join(f'<td style="{CELL}">{escape(cell)}</td>' for cell in row) for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _flat(values: Mapping[str, Any]) -> dict[str, str]:
    """The cells of one row, with names such as `numbers.loss` for values of a mapping."""
    cells: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            cells |= {f"{key}.{inner}": _text(item) for inner, item in value.items() if not _is_empty(item)}
        elif not _is_empty(value):
            cells[key] = _text(value)
    return cells


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, Mapping | Sequence) and not value)


def _is_list_of_records(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, BaseModel) for item in value)


def _text(value: Any) -> str:
    """A value for people: 1,204 or 3.217 or `train 12, validation 2`."""
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.4g}"
        case str():
            return _cut(value, MAX_CELL)
        case BaseModel():
            return _text(dict(value))
        case Mapping():
            pairs = (f"{key} {_text(item)}" for key, item in value.items() if not _is_empty(item))
            return _cut(", ".join(pairs), MAX_CELL)
        case list() | tuple():
            return _cut(", ".join(map(_text, value)), MAX_CELL)
        case _:
            return _cut(str(value), MAX_CELL)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
