"""One array of a part, mapped: any range of its numbers, decoded chunk by chunk with every checksum held.

In: the bytes of a shard and the grid of its array. Out: codes, or bytes of vectors. The chunk decoded last is kept, and
replaced in one assignment, so that threads can share an array; what is given out may share memory with it and is
read-only.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.cache.format.codecs import decode_numbers, decode_plain
from kdpipe.cache.format.shards import Shard
from kdpipe.cache.format.zarr_json import ArrayGrid
from kdpipe.schemas.errors import CacheDamaged

# The last of more chunks than these is kept as a copy, since a view would keep all of them.
KEPT_TOGETHER = 8


class PartArray:
    """One array of a part: ranges of its numbers, chunk by chunk."""

    def __init__(self, data: memoryview, grid: ArrayGrid, index_sha256: str) -> None:
        self._grid = grid
        self._shard = Shard(data, grid.n_chunks, index_sha256) if grid.n_chunks else None
        self._length = grid.shape[0]
        self._is_coded = grid.level is not None
        self._columns = grid.shape[1] if self._is_coded and len(grid.shape) == 2 else 1
        self._last: dict[tuple[int, ...], tuple[int, npt.NDArray[Any]]] = {}

    @property
    def n_chunks(self) -> int:
        """Chunks in all."""
        return self._grid.n_chunks

    def get(self, start: int, stop: int, column: int = 0) -> npt.NDArray[Any]:
        """Numbers start to stop of a column, read-only: the result may share memory with the last chunk."""
        result: npt.NDArray[Any] = self.get_columns(start, stop, (column,))[0]
        return result

    def get_columns(self, start: int, stop: int, columns: tuple[int, ...]) -> npt.NDArray[Any]:
        """Rows start to stop of some columns, as [columns, rows]: what `get` gives column by column, in one go."""
        if not 0 <= start <= stop <= self._length:
            raise CacheDamaged(f"numbers {start} to {stop} are asked of an array of {self._length}")
        size = self._grid.chunk[0]
        first = start // size
        end = -(-stop // size) if stop > start else first
        return self._chunks(first, end, columns)[:, start - first * size : stop - first * size]

    def _chunks(self, first: int, end: int, columns: tuple[int, ...]) -> npt.NDArray[Any]:
        """Neighboring chunks of some columns, side by side; the last one is kept."""
        size, last = self._grid.chunk[0], self._last.get(columns)
        if last is not None and (first, end) == (last[0], last[0] + 1):
            return last[1]
        shape = (len(columns), (end - first) * size, *(() if self._is_coded else self._grid.chunk[1:]))
        joined = np.empty(shape, np.uint32 if self._is_coded else np.uint8)
        for place, number in enumerate(range(first, end)):
            into = joined[:, place * size : (place + 1) * size]
            if last is not None and last[0] == number:
                into[:] = last[1]
            else:
                self._decode(number, columns, into)
        joined.setflags(write=False)
        if end > first:
            chunk = joined[:, -size:]
            self._last[columns] = (end - 1, chunk if end - first <= KEPT_TOGETHER else chunk.copy())
        return joined

    def _decode(self, number: int, columns: tuple[int, ...], into: npt.NDArray[Any]) -> None:
        """A chunk of rows in some columns, each of which must fill its place."""
        assert self._shard is not None
        decode = decode_numbers if self._is_coded else decode_plain
        for column, place in zip(columns, into, strict=True):
            decode(self._shard.chunk(number * self._columns + column), place)

    def column_bytes(self) -> list[int]:
        """Bytes of each column, checksums included."""
        if self._shard is None:
            return [0] * self._columns
        return [int(size) for size in self._shard.sizes.reshape(-1, self._columns).sum(axis=0)]
