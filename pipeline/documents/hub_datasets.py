"""Hub data sets, loaded with `datasets`. The only module that imports it.

In: a data set's name and split. Out: its rows. `datasets` downloads them into its own cache.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, final

import datasets

from kdpipe.cache.format.number_lists import depth, rows_of_lists
from kdpipe.pipeline.documents.row_files import Row
from kdpipe.schemas.errors import ConfigError

BATCH = 256
# Rows of lists in memory: one row of 4,096 tokens with a hundred ids each takes 6 MB.
LISTS_BATCH = 8


class HubRows:
    """A split of a data set; a position is a row number from 0."""

    def __init__(self, name: str, split: str) -> None:
        self._all = _load(name, split)
        self.name = f"{name}[{split}]"
        self.wanted: Collection[str] | None = None

    def rows(self) -> Iterator[Row]:
        rows = self._wanted_rows()
        for first in range(0, len(rows), BATCH):
            table = rows[first : first + BATCH]
            for i in range(len(next(iter(table.values()), []))):
                columns = {name: values[i] for name, values in table.items()}
                yield Row(number=first + i + 1, position=first + i, columns=columns)

    def columns_at(self, positions: list[int]) -> Iterator[dict[str, Any]]:
        rows = self._wanted_rows()
        for first in range(0, len(positions), BATCH):
            wanted = positions[first : first + BATCH]
            table = rows[wanted]
            yield from ({name: values[i] for name, values in table.items()} for i in range(len(wanted)))

    def _wanted_rows(self) -> Any:
        if self.wanted is None:
            return self._all
        return self._all.select_columns([name for name in self._all.column_names if name in self.wanted])


@final
class HubLists:
    """A split with columns of lists of numbers, restricted to some columns, like a Parquet file of such lists."""

    def __init__(self, data_set: Any, name: str, wanted: Collection[str]) -> None:
        self._all, self.name, self.names = data_set, name, list(data_set.column_names)
        self._columns = [column for column in self.names if column in wanted]
        types = {field.name: field.type for field in data_set.features.arrow_schema}
        for column in self._columns:
            if not depth(types[column]):
                raise ConfigError(f"{name}: the column {column} has type {types[column]}, expected lists of numbers")

    @classmethod
    def load(cls, name: str, split: str) -> "HubLists":
        """Load a split, without columns."""
        return cls(_load(name, split).with_format("arrow"), f"{name}[{split}]", ())

    def of(self, wanted: Collection[str]) -> "HubLists":
        """The same split with these columns."""
        return HubLists(self._all, self.name, wanted)

    def rows_at(self, numbers: Sequence[int] | None = None) -> Iterator[dict[str, Any]]:
        """The rows with these (ascending) numbers, or all."""
        chosen = self._all.select_columns(self._columns)
        numbers = range(len(chosen)) if numbers is None else numbers
        for first in range(0, len(numbers), LISTS_BATCH):
            batch = numbers[first : first + LISTS_BATCH]
            table = chosen[batch]
            columns = {name: rows_of_lists(table.column(name).combine_chunks()) for name in self._columns}
            yield from ({name: take(row) for name, take in columns.items()} for row in range(len(batch)))


def _load(name: str, split: str) -> Any:
    path, _, subset = name.partition(":")
    try:
        return datasets.load_dataset(path, subset or None, split=split)
    except Exception as error:  # datasets raises errors of many libraries
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ConfigError(
            f"{name} is not a local path, and could not be loaded as a Hub data set: {line}",
            hint="check the path; data sets are named OWNER/NAME or OWNER/NAME:SUBSET, splits with --data-split",
        ) from error
