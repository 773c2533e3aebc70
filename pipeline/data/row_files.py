"""Files that hold rows, one class a format: rows in order with bounded memory, and any row again by its position.

In: a file. Out: `Row`s. Before it: `sources.py` finds the files. After it: `index.py` reads all rows once,
`corpus.py` those of a part.
"""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Protocol

from kdpipe.cache.arrow_files import ParquetRows
from kdpipe.schemas.errors import ConfigError

BOM = b"\xef\xbb\xbf"
# A character of JSON may be written in six bytes (\u0041), and a row has more than its text.
LINE_BYTES_A_BYTE, LINE_BYTES_MORE = 8, 1 << 16
NOT_UTF8 = "it is not valid UTF-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row: its number from 1 on, where to find it again, and its columns or what is wrong with it."""

    number: int
    position: int
    columns: dict[str, Any] | None = None
    problem: str = ""


class RowFile(Protocol):
    """A file of rows; `name` is what people call it.

    Once `wanted` names columns, others need not be read.
    """

    name: str
    wanted: Collection[str] | None

    def rows(self) -> Iterator[Row]:
        """All rows, in order."""

    def columns_at(self, positions: list[int]) -> Iterator[dict[str, Any]]:
        """The columns of good rows, by ascending position."""


class _OnDisk:
    """A file that must stay as it is while its rows are read."""

    def __init__(self, path: Path, name: str, max_bytes: int) -> None:
        self.path, self.name, self._max_bytes = path, name, max_bytes
        self.wanted: Collection[str] | None = None
        self._seen = self._state()

    def _state(self) -> tuple[int, int]:
        try:
            state = self.path.stat()
        except OSError as error:
            raise ConfigError(
                f"{self.path} cannot be read: {error.strerror}", hint="is it there, and may you read it?"
            ) from None
        return state.st_size, state.st_mtime_ns

    def check_unchanged(self) -> None:
        """Refuse a file that is not the one that was found at first."""
        if self._state() != self._seen:
            raise ConfigError(
                f"{self.path} has changed while it was read", hint="let it be until the command is done, and run again"
            )

    def open_bytes(self) -> Any:
        """The file, opened for reading."""
        self.check_unchanged()
        try:
            return self.path.open("rb")
        except OSError as error:
            raise ConfigError(
                f"{self.path} cannot be read: {error.strerror}", hint="is it there, and may you read it?"
            ) from None


class LinesFile(_OnDisk):
    """One JSON object a line; the position is the line's first byte. Empty lines are no rows."""

    extension: ClassVar = ".jsonl"

    def rows(self) -> Iterator[Row]:
        """All rows, in order."""
        limit = LINE_BYTES_A_BYTE * self._max_bytes + LINE_BYTES_MORE
        number = position = 0
        with self.open_bytes() as file:
            while line := file.readline(limit):
                number += 1
                here, size = position, len(line)
                while not line.endswith(b"\n") and (more := file.readline(limit)):
                    size += len(more)
                    line = more if more.endswith(b"\n") else b""
                position += size
                if size > limit:
                    yield Row(number=number, position=here, problem=f"its line has {size:,} bytes")
                elif line.strip() and line != BOM:
                    columns, problem = _parse(line)
                    yield Row(number=number, position=here, columns=columns, problem=problem)

    def columns_at(self, positions: list[int]) -> Iterator[dict[str, Any]]:
        """The columns of good rows, by ascending position."""
        with self.open_bytes() as file:
            for position in positions:
                file.seek(position)
                columns, problem = _parse(file.readline())
                if columns is None:
                    raise ConfigError(f"{self.path} at byte {position:,}: {problem}, and it was good before")
                yield columns


def _parse(line: bytes) -> tuple[dict[str, Any] | None, str]:
    try:
        value = json.loads(line.removeprefix(BOM).decode("utf-8"))
    except UnicodeDecodeError:
        return None, NOT_UTF8
    except (ValueError, RecursionError) as error:
        return None, f"it is not JSON ({getattr(error, 'msg', None) or type(error).__name__})"
    return _as_columns(value)


def _as_columns(value: Any) -> tuple[dict[str, Any] | None, str]:
    if isinstance(value, dict):
        return value, ""
    return None, f"it is {_kind(value)} and no object"


def _kind(value: Any) -> str:
    names = {str: "a string", list: "a list", bool: "a truth value", int: "a number", float: "a number"}
    return names.get(type(value), "null")


class ListFile(_OnDisk):
    """A JSON list of objects, held whole; the position is the place in the list."""

    extension: ClassVar = ".json"

    def rows(self) -> Iterator[Row]:
        """All rows, in order."""
        for i, value in enumerate(_list_of(self)):
            columns, problem = _as_columns(value)
            yield Row(number=i + 1, position=i, columns=columns, problem=problem)

    def columns_at(self, positions: list[int]) -> Iterator[dict[str, Any]]:
        """The columns of good rows, by ascending position."""
        self.check_unchanged()
        values = _list_of(self)
        yield from (values[position] for position in positions)


@lru_cache(maxsize=1)
def _list_of(file: ListFile) -> list[Any]:
    """The list of a file; that of the last one is held, so that reading in order parses each once."""
    with file.open_bytes() as opened:
        data = opened.read().removeprefix(BOM)
    try:
        values = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{file.path} is no JSON list: {error or type(error).__name__}",
            hint="a .json file is a list of objects, or has one object a line",
        ) from None
    if not isinstance(values, list):
        raise ConfigError(f"{file.path} is {_kind(values)}, a list of objects was expected")
    return values


class PlainFile(_OnDisk):
    """A text file: one document, in a column named text."""

    extension: ClassVar = ".txt"

    def rows(self) -> Iterator[Row]:
        """All rows, in order."""
        with self.open_bytes() as file:
            data = file.read(self._max_bytes + 1)
        if len(data) > self._max_bytes:
            yield Row(number=1, position=0, problem=f"it has more than {self._max_bytes:,} bytes")
            return
        try:
            yield Row(number=1, position=0, columns={"text": data.removeprefix(BOM).decode("utf-8")})
        except UnicodeDecodeError:
            yield Row(number=1, position=0, problem=NOT_UTF8)

    def columns_at(self, positions: list[int]) -> Iterator[dict[str, Any]]:
        """The columns of good rows, by ascending position."""
        self.check_unchanged()
        yield from (row.columns for row in self.rows() if positions and row.columns is not None)


class TableFile(_OnDisk):
    """A Parquet file; the position is the row's number, from 0 on."""

    extension: ClassVar = ".parquet"

    def rows(self) -> Iterator[Row]:
        """All rows, in order."""
        for i, columns in enumerate(self._table().rows()):
            yield Row(number=i + 1, position=i, columns=columns, problem="" if columns is not None else NOT_UTF8)

    def columns_at(self, positions: list[int]) -> Iterator[dict[str, Any]]:
        """The columns of good rows, by ascending position."""
        for position, columns in zip(positions, self._table().rows_at(positions), strict=True):
            if columns is None:
                raise ConfigError(f"{self.path}, row {position + 1:,}: {NOT_UTF8}, and it was good before")
            yield columns

    def _table(self) -> ParquetRows:
        self.check_unchanged()
        return ParquetRows(str(self.path), self.wanted)


def open_json(path: Path, name: str, max_bytes: int) -> RowFile:
    """A .json file: a list of objects, or one object a line."""
    probe = ListFile(path, name, max_bytes)
    with probe.open_bytes() as file:
        start = file.read(4096).removeprefix(BOM).lstrip()
    return LinesFile(path, name, max_bytes) if start.startswith(b"{") else probe
