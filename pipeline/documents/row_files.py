"""Files of rows, one class per format: rows in order with bounded memory, and any row again by its position.

In: a file. Out: `Row`s.
"""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kdpipe.cache.parts.arrow_files import NOT_UTF8, ParquetRows
from kdpipe.pipeline.documents.json_bounds import BOM, BadList, is_too_costly, list_values, value_at
from kdpipe.schemas.errors import ConfigError

# Limits for lines without an end, and for runs of empty lines.
MAX_LINE_BYTES, MAX_EMPTY_LINES = 1 << 30, 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Most bytes of a document's text, and of a stored row: a line, a value of a list, a row of a table."""

    document_bytes: int
    row_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row: its number from 1, its position in the file, and its columns or the problem with it."""

    number: int
    position: int
    columns: dict[str, Any] | None = None
    problem: str = ""


class RowFile(Protocol):
    """A file of rows; `name` identifies it in messages, `wanted` restricts the columns that are read."""

    name: str
    wanted: Collection[str] | None

    def rows(self) -> Iterator[Row]:
        """All rows, in order."""

    def columns_at(self, positions: list[int]) -> Iterator[dict[str, Any]]:
        """The columns of valid rows, by ascending position."""


class _OnDisk:
    """A file that must not change while its rows are read."""

    def __init__(self, path: Path, name: str, limits: Limits) -> None:
        self.path, self.name, self._limits = path, name, limits
        self.wanted: Collection[str] | None = None
        self._seen = self._state()

    def _state(self) -> tuple[int, int]:
        try:
            state = self.path.stat()
        except OSError as error:
            raise ConfigError(
                f"{self.path} cannot be read: {error.strerror}", hint="check the path and its permissions"
            ) from None
        return state.st_size, state.st_mtime_ns

    def check_unchanged(self) -> None:
        """Raise if the file has changed since it was opened."""
        if self._state() != self._seen:
            raise ConfigError(
                f"{self.path} changed while it was read", hint="re-run, and do not modify it during the command"
            )

    def open_bytes(self) -> Any:
        """Open the file for reading."""
        self.check_unchanged()
        try:
            return self.path.open("rb")
        except OSError as error:
            raise ConfigError(
                f"{self.path} cannot be read: {error.strerror}", hint="check the path and its permissions"
            ) from None


class LinesFile(_OnDisk):
    """JSON lines; a position is a line's first byte. Empty lines are skipped."""

    def rows(self) -> Iterator[Row]:
        most = self._limits.row_bytes
        number = position = n_empty = 0
        with self.open_bytes() as file:
            while line := file.readline(most):
                number += 1
                here, size, line = position, len(line), self._without_the_rest(file, line)
                position = file.tell() if size == most else position + size
                n_empty = 0 if line.strip() else n_empty + 1
                if n_empty > MAX_EMPTY_LINES:
                    raise ConfigError(
                        f"{self.path} has more than {MAX_EMPTY_LINES:,} consecutive empty lines",
                        hint="check that the file is complete",
                    )
                if position - here > most:
                    problem = f"the line has {position - here:,} bytes, at most {most:,} are allowed"
                    yield Row(number=number, position=here, problem=problem)
                elif not n_empty and line != BOM:
                    columns, problem = _parse(line, most)
                    yield Row(number=number, position=here, columns=columns, problem=problem)

    def _without_the_rest(self, file: Any, line: bytes) -> bytes:
        """The part of a line that was read; skips the rest of it."""
        start, more = file.tell(), line
        while not more.endswith(b"\n") and (more := file.readline(self._limits.row_bytes)):
            if file.tell() - start > MAX_LINE_BYTES:
                raise ConfigError(
                    f"{self.path} has a line of more than {MAX_LINE_BYTES:,} bytes",
                    hint="expected JSON lines (one object per line)",
                )
        return line

    def columns_at(self, positions: list[int]) -> Iterator[dict[str, Any]]:
        with self.open_bytes() as file:
            for position in positions:
                file.seek(position)
                columns, problem = _parse(file.readline(), self._limits.row_bytes)
                if columns is None:
                    raise ConfigError(f"{self.path} at byte {position:,}: {problem}, but was valid when first read")
                yield columns


def _parse(line: bytes, max_bytes: int) -> tuple[dict[str, Any] | None, str]:
    if is_too_costly(line, max_bytes):
        return None, f"its {len(line):,} bytes have too many values to fit in memory"
    try:
        value = json.loads(line.removeprefix(BOM).decode("utf-8"))
    except UnicodeDecodeError:
        return None, NOT_UTF8
    except (ValueError, RecursionError) as error:
        return None, f"not valid JSON ({getattr(error, 'msg', None) or type(error).__name__})"
    return _as_columns(value)


def _as_columns(value: Any) -> tuple[dict[str, Any] | None, str]:
    if isinstance(value, dict):
        return value, ""
    return None, f"{_kind(value)}, expected an object"


def _kind(value: Any) -> str:
    names = {str: "a string", list: "a list", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")


class ListFile(_OnDisk):
    """A JSON list of objects; a position is an object's first byte."""

    def rows(self) -> Iterator[Row]:
        with self.open_bytes() as file:
            try:
                for number, (position, value) in enumerate(list_values(file, self._limits.row_bytes), 1):
                    columns, problem = _as_columns(value)
                    yield Row(number=number, position=position, columns=columns, problem=problem)
            except (BadList, UnicodeDecodeError) as error:
                raise self._no_list(error) from None

    def columns_at(self, positions: list[int]) -> Iterator[dict[str, Any]]:
        with self.open_bytes() as file:
            try:
                yield from (value_at(file, position, self._limits.row_bytes)[0] for position in positions)
            except (BadList, UnicodeDecodeError) as error:
                raise self._no_list(error) from None

    def _no_list(self, error: ValueError) -> ConfigError:
        why = NOT_UTF8 if isinstance(error, UnicodeDecodeError) else error
        return ConfigError(
            f"{self.path} is not a JSON list: {why}",
            hint="a .json file must be a list of objects, or JSON lines (one object per line)",
        )


class PlainFile(_OnDisk):
    """A text file: one document, in a column named text."""

    def rows(self) -> Iterator[Row]:
        most = self._limits.document_bytes
        with self.open_bytes() as file:
            data = file.read(most + 1)
        if len(data) > most:
            yield Row(number=1, position=0, problem=f"the file has more than {most:,} bytes")
            return
        try:
            yield Row(number=1, position=0, columns={"text": data.removeprefix(BOM).decode("utf-8")})
        except UnicodeDecodeError:
            yield Row(number=1, position=0, problem=NOT_UTF8)

    def columns_at(self, positions: list[int]) -> Iterator[dict[str, Any]]:
        self.check_unchanged()
        yield from (row.columns for row in self.rows() if positions and row.columns is not None)


class TableFile(_OnDisk):
    """A Parquet file; a position is a row number from 0."""

    def rows(self) -> Iterator[Row]:
        for i, row in enumerate(self._table().rows()):
            if isinstance(row, str):
                yield Row(number=i + 1, position=i, problem=row)
            else:
                yield Row(number=i + 1, position=i, columns=row)

    def columns_at(self, positions: list[int]) -> Iterator[dict[str, Any]]:
        for position, row in zip(positions, self._table().rows_at(positions), strict=True):
            if isinstance(row, str):
                raise ConfigError(f"{self.path}, row {position + 1:,}: {row}, but was valid when first read")
            yield row

    def _table(self) -> ParquetRows:
        self.check_unchanged()
        return ParquetRows(str(self.path), self._limits.row_bytes, self.wanted)


def open_json(path: Path, name: str, limits: Limits) -> RowFile:
    """A .json file: a list of objects, or JSON lines."""
    probe = ListFile(path, name, limits)
    with probe.open_bytes() as file:
        start = file.read(4096).removeprefix(BOM).lstrip()
    return LinesFile(path, name, limits) if start.startswith(b"{") else probe
