"""Files of rows, one class per format: rows in order with bounded memory, and any row again by its position.

In: a file, which may be compressed. Out: `Row`s.
"""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kdpipe.cache.parts.arrow_files import NOT_UTF8, ParquetRows
from kdpipe.pipeline.documents.compressed_files import OPENERS, DamagedStream, open_compressed
from kdpipe.pipeline.documents.json_bounds import BOM, BadList, is_too_costly, list_values, value_at
from kdpipe.schemas.errors import ConfigError

# Rows of a compressed file, besides one per eight bytes of it.
MIN_ROWS = 1 << 18
# Added to the columns of a document that continues in the next row.
CONTINUES = "continues in the next row"
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


class FileOnDisk:
    """A file that must not change while its rows are read; a format has `_rows` and `_columns_at`."""

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

    def rows(self) -> Iterator[Row]:
        number = 0
        most = MIN_ROWS + self._seen[0] // 8 if self.path.suffix in OPENERS else None
        try:
            for n_rows, row in enumerate(self._rows()):
                if most is not None and n_rows >= most:
                    raise DamagedStream(f"it expands to more than {most:,} rows, which is implausible for text")
                number = row.number
                yield row
        except DamagedStream as error:
            where = f"after row {number:,}" if number else "in its first row"
            raise self._damaged(error, where) from None

    def columns_at(self, positions: list[int]) -> Iterator[dict[str, Any]]:
        try:
            yield from self._columns_at(positions)
        except DamagedStream as error:
            raise self._damaged(error, "read again") from None

    def start(self) -> bytes:
        """The first bytes, decompressed."""
        try:
            with self.open_bytes() as file:
                data: bytes = file.read(4096)
        except DamagedStream as error:
            raise self._damaged(error, "in its first row") from None
        return data

    def _damaged(self, error: DamagedStream, where: str) -> ConfigError:
        return ConfigError(
            f"{self.path}, {where}: {error}", hint="copy the file again, or decompress it and check the result"
        )

    def _rows(self) -> Iterator[Row]:
        raise NotImplementedError

    def _columns_at(self, positions: list[int]) -> Iterator[dict[str, Any]]:
        raise NotImplementedError

    def open_bytes(self) -> Any:
        """Open the file for reading, decompressed."""
        self.check_unchanged()
        try:
            return open_compressed(self.path, self._seen) if self.path.suffix in OPENERS else self.path.open("rb")
        except OSError as error:
            raise ConfigError(
                f"{self.path} cannot be read: {error.strerror}", hint="check the path and its permissions"
            ) from None


class LinesFile(FileOnDisk):
    """JSON lines; a position is a line's first byte. Empty lines are skipped."""

    def _rows(self) -> Iterator[Row]:
        most = self._limits.row_bytes
        number = position = n_empty = 0
        with self.open_bytes() as file:
            while line := file.readline(most):
                number += 1
                here, size, line = position, len(line), self._skip_rest(file, line)
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

    def _skip_rest(self, file: Any, line: bytes) -> bytes:
        """The part of a line that was read; skips the rest of it."""
        start, more = file.tell(), line
        while not more.endswith(b"\n") and (more := file.readline(self._limits.row_bytes)):
            if file.tell() - start > MAX_LINE_BYTES:
                raise ConfigError(
                    f"{self.path} has a line of more than {MAX_LINE_BYTES:,} bytes",
                    hint="expected JSON lines (one object per line)",
                )
        return line

    def _columns_at(self, positions: list[int]) -> Iterator[dict[str, Any]]:
        with self.open_bytes() as file:
            for position in positions:
                file.seek(position)
                columns, problem = _parse(file.readline(self._limits.row_bytes), self._limits.row_bytes)
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


class ListFile(FileOnDisk):
    """A JSON list of objects; a position is an object's first byte."""

    def _rows(self) -> Iterator[Row]:
        with self.open_bytes() as file:
            try:
                for number, (position, value) in enumerate(list_values(file, self._limits.row_bytes), 1):
                    columns, problem = _as_columns(value)
                    yield Row(number=number, position=position, columns=columns, problem=problem)
            except (BadList, UnicodeDecodeError) as error:
                raise self._no_list(error) from None

    def _columns_at(self, positions: list[int]) -> Iterator[dict[str, Any]]:
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


class PlainFile(FileOnDisk):
    """A text file: one document in a column named text, or several if it is long.

    A position is a document's first byte. Long texts are cut after a paragraph, line or word; a NUL byte ends the file.
    """

    def _rows(self) -> Iterator[Row]:
        number = position = 0
        is_last = False
        with self.open_bytes() as file:
            while not is_last:
                number += 1
                columns, problem, n_bytes, is_last = self._document(file, position)
                yield Row(number=number, position=position, columns=columns, problem=problem)
                position += n_bytes

    def _columns_at(self, positions: list[int]) -> Iterator[dict[str, Any]]:
        with self.open_bytes() as file:
            for position in positions:
                columns, problem, _, _ = self._document(file, position)
                if columns is None:
                    raise ConfigError(f"{self.path} at byte {position:,}: {problem}, but was valid when first read")
                yield columns

    def _document(self, file: Any, position: int) -> tuple[dict[str, Any] | None, str, int, bool]:
        """The document at a position or the problem with it, its bytes, and whether it is the last."""
        most = self._limits.document_bytes
        file.seek(position)
        data = file.read(most + 1)
        is_last = len(data) <= most
        if b"\0" in data:
            return None, "a NUL byte: not UTF-8 text", len(data), True
        n_bytes = len(data) if is_last else _cut(data, most)
        try:
            text = (data[:n_bytes] if position else data[:n_bytes].removeprefix(BOM)).decode("utf-8")
        except UnicodeDecodeError:
            return None, NOT_UTF8, n_bytes, is_last
        return {"text": text, **({} if is_last else {CONTINUES: True})}, "", n_bytes, is_last


def _cut(data: bytes, most: int) -> int:
    """The length of the longest document in the first `most` bytes that ends after a paragraph, a line or a word."""
    for seam in (b"\n\n", b"\n", b" "):
        if (place := data.rfind(seam, most // 2, most)) >= 0:
            return place + len(seam)
    within = range(most, max(most - 4, 0), -1)
    return next((place for place in within if data[place] & 0xC0 != 0x80), most)


class TableFile(FileOnDisk):
    """A Parquet file; a position is a row number from 0."""

    def _rows(self) -> Iterator[Row]:
        for i, row in enumerate(self._table().rows()):
            if isinstance(row, str):
                yield Row(number=i + 1, position=i, problem=row)
            else:
                yield Row(number=i + 1, position=i, columns=row)

    def _columns_at(self, positions: list[int]) -> Iterator[dict[str, Any]]:
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
    is_lines = probe.start().removeprefix(BOM).lstrip().startswith(b"{")
    return LinesFile(path, name, limits) if is_lines else probe
