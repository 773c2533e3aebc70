"""The files of an import source: Parquet with lists of numbers, JSON lines, or a Hub data set.

In: a file, a folder, a glob, or a data set's name. Out: files whose rows can be read in order with bounded memory, and
again by position.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from kdpipe.cache import layout
from kdpipe.cache.catalog import refuse_foreign_folder
from kdpipe.cache.parts.arrow_files import ParquetLists
from kdpipe.pipeline.documents.data_sources import DataQuery, find_files, is_of_hub
from kdpipe.pipeline.documents.row_files import Limits, LinesFile, ListFile, Row, RowFile, TableFile
from kdpipe.schemas.errors import ConfigError


class ListTable(Protocol):
    """A table with lists of numbers, restricted to some of its columns."""

    names: list[str]

    def rows_at(self, numbers: Sequence[int] | None = None) -> Iterator[dict[str, Any]]:
        """The rows with these (ascending) numbers, or all."""
        ...


class ListsFile:
    """A table of lists of numbers, opened for the wanted columns; a position is a row number from 0."""

    def __init__(self, name: str, opened: Callable[[Collection[str]], ListTable]) -> None:
        self.name, self._opened = name, opened
        self.wanted: Collection[str] | None = None

    def rows(self) -> Iterator[Row]:
        for i, columns in enumerate(self._open().rows_at()):
            yield Row(number=i + 1, position=i, columns=columns)

    def columns_at(self, positions: list[int]) -> Iterator[dict[str, Any]]:
        return self._open().rows_at(positions)

    def _open(self) -> ListTable:
        return self._opened(self.wanted or ())

    def names(self) -> list[str]:
        """All columns of the table, wanted or not."""
        return self._open().names


def check_place(source: str, out: str) -> None:
    """Refuse an output directory that cannot be used, before anything is read."""
    if "://" in out:
        raise ConfigError(f"--out {out} is a URL; imports write to a local directory", hint="give a local directory")
    folder, path = Path(source).expanduser(), Path(out).expanduser()
    if folder.is_dir() and path.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"--out {out} is inside the source directory {source}", hint="choose another directory")
    if path.is_dir() and not (path / layout.MANIFEST).exists():
        refuse_foreign_folder(path)


def source_files(source: str, split: str | None, max_row_bytes: int) -> list[RowFile]:
    """The files of a source, sorted by path, or a split of a Hub data set [train]."""
    if is_of_hub(source):
        from kdpipe.pipeline.documents.hub_datasets import HubLists

        data_set = HubLists.load(source, split or "train")
        return [ListsFile(data_set.name, data_set.of)]
    path = Path(source).expanduser()
    if not path.exists() and not any(sign in source for sign in "*?["):
        raise ConfigError(
            f"no such source: {source}",
            hint="expected a file, a directory, a quoted glob, or a Hub data set as OWNER/NAME",
        )
    limits = Limits(document_bytes=max_row_bytes, row_bytes=max_row_bytes)
    return [_open(file) for file in find_files(source, DataQuery(split=split), limits)]


def _open(file: RowFile) -> RowFile:
    if isinstance(file, TableFile):
        return ListsFile(file.name, partial(_parquet, file))
    if isinstance(file, LinesFile):
        return file
    if isinstance(file, ListFile):
        raise ConfigError(f"{file.name} is a single JSON list", hint="convert it to JSON lines (one object per line)")
    raise ConfigError(f"{file.name} is neither Parquet nor JSON lines", hint="select the other files with a glob")


def _parquet(file: TableFile, wanted: Collection[str]) -> ListTable:
    file.check_unchanged()
    return ParquetLists(str(file.path), wanted)


def choose_columns(files: list[RowFile], needed: Collection[str], useful: Collection[str]) -> None:
    """Read only these columns; refuse a Parquet file without a needed one."""
    for file in files:
        file.wanted = [*needed, *useful]
        names = file.names() if isinstance(file, ListsFile) else None
        missing = [] if names is None else [name for name in needed if name not in names]
        if missing:
            raise ConfigError(
                f"{file.name} has no column {missing[0]}; columns: {', '.join((names or [])[:12]) or 'none'}",
                hint="check that --from names the format of the files",
            )


def has_column(files: list[RowFile], name: str) -> bool:
    """Whether the first row of a source has a column; a source without a valid first row is refused."""
    for file in files:
        if isinstance(file, ListsFile):
            return name in file.names()
        for row in file.rows():
            if row.columns is None:
                raise ConfigError(
                    f"{file.name}, row {row.number:,}: {row.problem}",
                    hint="fix the row or remove it",
                )
            return name in row.columns
    raise ConfigError("the source has no rows", hint="check the path")
