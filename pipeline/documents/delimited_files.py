"""CSV and TSV files: a header with the column names, then rows of texts, where quoted fields may have line breaks.

In: a file. Out: `Row`s with bounded memory; a row's number is that of its first line, its position its first byte.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdpipe.cache.parts.arrow_files import NOT_UTF8
from kdpipe.pipeline.documents.json_bounds import BOM
from kdpipe.pipeline.documents.row_files import FileOnDisk, Limits, Row
from kdpipe.schemas.errors import ConfigError


class _TooLong(ValueError):
    """A row with more bytes than a row may have."""


class _Records:
    """The records of an open file from its current place on; `place` and `n_lines` are those read so far."""

    def __init__(self, file: Any, delimiter: str, max_bytes: int, place: int = 0) -> None:
        self._file, self._most, self.place, self.n_lines = file, max_bytes, place, 0
        self._n_bytes, self._is_utf8 = 0, True
        csv.field_size_limit(max(csv.field_size_limit(), max_bytes))
        self._reader = csv.reader(self._lines(), delimiter=delimiter, strict=True)

    def _lines(self) -> Iterator[str]:
        while line := self._file.readline(self._most + 1 - self._n_bytes):
            self._n_bytes += len(line)
            if self._n_bytes > self._most:
                raise _TooLong
            start, self.place, self.n_lines = self.place, self.place + len(line), self.n_lines + 1
            line = line if start else line.removeprefix(BOM)
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError:
                self._is_utf8 = False
                yield line.decode("utf-8", "replace")

    def next(self) -> tuple[list[str], str] | None:
        """The fields of the next record, or the problem with it; None at the end."""
        self._n_bytes, self._is_utf8 = 0, True
        try:
            fields = next(self._reader)
        except StopIteration:
            return None
        except csv.Error as error:
            return [], f"not valid CSV ({error})"
        return fields, "" if self._is_utf8 else NOT_UTF8


class DelimitedFile(FileOnDisk):
    """A file of fields between commas or tabs."""

    def __init__(self, path: Path, name: str, limits: Limits, *, delimiter: str) -> None:
        super().__init__(path, name, limits)
        self._delimiter = delimiter
        self._names: list[str] | None = None

    def _rows(self) -> Iterator[Row]:
        with self.open_bytes() as file:
            records = _Records(file, self._delimiter, self._limits.row_bytes)
            names = self._header(records)
            while True:
                number, position = records.n_lines + 1, records.place
                record = self._next(records)
                if record is None:
                    return
                fields, problem = record
                if fields or problem:
                    columns, problem = _columns(names, fields, problem)
                    yield Row(number=number, position=position, columns=columns, problem=problem)

    def _columns_at(self, positions: list[int]) -> Iterator[dict[str, Any]]:
        with self.open_bytes() as file:
            names = self._names or self._header(_Records(file, self._delimiter, self._limits.row_bytes))
            for position in positions:
                file.seek(position)
                record = self._next(_Records(file, self._delimiter, self._limits.row_bytes, position))
                columns, problem = _columns(names, *(record or ([], "no row")))
                if columns is None:
                    raise ConfigError(f"{self.path} at byte {position:,}: {problem}, but was valid when first read")
                yield columns

    def _next(self, records: _Records) -> tuple[list[str], str] | None:
        try:
            return records.next()
        except _TooLong:
            raise ConfigError(
                f"{self.path}:{records.n_lines + 1}: a row of more than {self._limits.row_bytes:,} bytes",
                hint="check that its quotes are closed, or raise data.max_row_bytes",
            ) from None

    def _header(self, records: _Records) -> list[str]:
        names, problem = self._next(records) or ([], "")
        names = [name.strip() for name in names]
        if named := next((name for name in names if name and names.count(name) > 1), ""):
            problem = f"duplicate column {named!r}"
        if problem:
            raise ConfigError(f"{self.path}:1: the header: {problem}", hint="the first line has the column names")
        self._names = names
        return names


def _columns(names: list[str], fields: list[str], problem: str) -> tuple[dict[str, Any] | None, str]:
    """A row's columns, without those that have no name."""
    if not problem and len(fields) != len(names):
        problem = f"{len(fields):,} fields, the header has {len(names):,}"
    if problem:
        return None, problem
    return {name: field for name, field in zip(names, fields, strict=True) if name}, ""
