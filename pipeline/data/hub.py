"""Data sets of the hub, through the library that everybody uses for them. The only module that imports datasets.

In: a data set's name and split. Out: its rows. `datasets` keeps them in a cache of its own, in the user's home.
Before it: `sources.py`. After it: `index.py` and `corpus.py`, which read it like a file.
"""

from collections.abc import Collection, Iterator
from typing import Any

import datasets

from kdpipe.pipeline.data.row_files import Row
from kdpipe.schemas.errors import ConfigError

BATCH = 256


class HubRows:
    """A split of a data set; the position is the row's number, from 0 on."""

    def __init__(self, name: str, split: str) -> None:
        self._all = _load(name, split)
        self.name = f"{name}[{split}]"
        self.wanted: Collection[str] | None = None

    def rows(self) -> Iterator[Row]:
        """All rows, in order."""
        rows = self._wanted_rows()
        for first in range(0, len(rows), BATCH):
            table = rows[first : first + BATCH]
            for i in range(len(next(iter(table.values()), []))):
                columns = {name: values[i] for name, values in table.items()}
                yield Row(number=first + i + 1, position=first + i, columns=columns)

    def columns_at(self, positions: list[int]) -> Iterator[dict[str, Any]]:
        """The columns of good rows, by ascending position."""
        rows = self._wanted_rows()
        for first in range(0, len(positions), BATCH):
            wanted = positions[first : first + BATCH]
            table = rows[wanted]
            yield from ({name: values[i] for name, values in table.items()} for i in range(len(wanted)))

    def _wanted_rows(self) -> Any:
        if self.wanted is None:
            return self._all
        return self._all.select_columns([name for name in self._all.column_names if name in self.wanted])


def _load(name: str, split: str) -> Any:
    path, _, subset = name.partition(":")
    try:
        return datasets.load_dataset(path, subset or None, split=split)
    except Exception as error:  # datasets raises errors of many libraries
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ConfigError(
            f"there is no file or folder {name}, and it cannot be read as a hub data set: {line}",
            hint="check the path; a data set is named OWNER/NAME or OWNER/NAME:SUBSET, its split with --data-split",
        ) from error
