"""One array of a part, memory-mapped: any range of its numbers, decoded chunk by chunk, every checksum verified.

In: the bytes of a shard and the grid of its array. Out: codes, or bytes of vectors, read-only. The chunk decoded last
is kept, and replaced in one assignment, so that threads can share an array; results may share memory with it.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.cache.format.shards import Shard
from kdpipe.cache.format.zarr_json import ArrayGrid
from kdpipe.schemas.errors import CacheDamaged

# After a read of more chunks than these, the last one is kept as a copy: a view would keep all of them.
KEPT_TOGETHER = 8


class PartArray:
    """One array of a part: ranges of its numbers, chunk by chunk."""

    def __init__(self, data: memoryview, grid: ArrayGrid, index_sha256: str) -> None:
        self._grid = grid
        self._shard = Shard(data, grid.n_chunks, index_sha256) if grid.n_chunks else None
        self._length = grid.shape[0]
        self._columns = grid.n_columns
        self._row_shape = () if grid.by_column else grid.chunk[1:]
        self._last: dict[tuple[int, ...], tuple[int, npt.NDArray[Any]]] = {}

    @property
    def n_chunks(self) -> int:
        return self._grid.n_chunks

    def get(self, start: int, stop: int, column: int = 0) -> npt.NDArray[Any]:
        """Numbers start to stop of a column, read-only: the result may share memory with the last chunk."""
        result: npt.NDArray[Any] = self.get_columns(start, stop, (column,))[0]
        return result

    def get_columns(self, start: int, stop: int, columns: tuple[int, ...]) -> npt.NDArray[Any]:
        """Rows start to stop of some columns, as [columns, rows]: `get` for several columns in one call."""
        if not 0 <= start <= stop <= self._length:
            raise CacheDamaged(f"numbers {start} to {stop} are outside an array of {self._length}")
        size = self._grid.chunk[0]
        first = start // size
        end = -(-stop // size) if stop > start else first
        return self._chunks(first, end, columns)[:, start - first * size : stop - first * size]

    def _chunks(self, first: int, end: int, columns: tuple[int, ...]) -> npt.NDArray[Any]:
        """Neighboring chunks of some columns, concatenated; the last one is kept."""
        size, last = self._grid.chunk[0], self._last.get(columns)
        if last is not None and (first, end) == (last[0], last[0] + 1):
            return last[1]
        joined = np.empty((len(columns), (end - first) * size, *self._row_shape), self._grid.dtype)
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
        """Decode the chunks of some columns at one position of the grid."""
        assert self._shard is not None
        decode = self._grid.codec.decode
        for column, buffer in zip(columns, into, strict=True):
            decode(self._shard.chunk(number * self._columns + column), buffer)

    def column_bytes(self) -> list[int]:
        """Bytes of each column, checksums included."""
        if self._shard is None:
            return [0] * self._columns
        return [int(size) for size in self._shard.sizes.reshape(-1, self._columns).sum(axis=0)]
