"""One array of a part, mapped: any range of its numbers, decoded chunk by chunk with every checksum held.

In: the bytes of a shard and the grid of its array. Out: codes, or bytes of vectors.
Before it: `shards.py`, `zarr_json.py`. After it: `part_reader.py`. The chunk decoded last is kept, and replaced in one
assignment, so that threads can share an array; what is given out may share memory with it and is read-only.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.cache.codecs import decode_numbers, decode_plain
from kdpipe.cache.laws import Codes
from kdpipe.cache.shards import Shard
from kdpipe.cache.zarr_json import Grid
from kdpipe.schemas.errors import CacheDamaged


class PartArray:
    """One array of a part: ranges of its numbers, chunk by chunk."""

    def __init__(self, data: memoryview, grid: Grid, index_sha256: str) -> None:
        self._grid = grid
        self._shard = Shard(data, grid.n_chunks, index_sha256) if grid.n_chunks else None
        self._length = grid.shape[0]
        self._columns = grid.shape[1] if grid.level is not None and len(grid.shape) == 2 else 1
        self._last_matrix: tuple[tuple[int, tuple[int, ...]], Codes] | None = None
        self._last: list[tuple[int, npt.NDArray[Any]] | None] = [None] * self._columns

    @property
    def n_chunks(self) -> int:
        """Chunks in all."""
        return self._grid.n_chunks

    def get(self, start: int, stop: int, column: int = 0) -> npt.NDArray[Any]:
        """Numbers start to stop of a column, read-only: the result may share memory with the last chunk."""
        if not 0 <= start <= stop <= self._length:
            raise CacheDamaged(f"numbers {start} to {stop} are asked of an array of {self._length}")
        size = self._grid.chunk[0]
        pieces = []
        for number in range(start // size, -(-stop // size) if stop > start else start // size):
            chunk = self._chunk(number * self._columns + column, column)
            pieces.append(chunk[max(start - number * size, 0) : stop - number * size])
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.zeros((0, *self._chunk_shape[1:]), self._dtype)

    def get_columns(self, start: int, stop: int, columns: tuple[int, ...]) -> Codes:
        """Rows start to stop of some columns, as [columns, rows]: what `get` gives column by column, in one go."""
        if not 0 <= start <= stop <= self._length:
            raise CacheDamaged(f"numbers {start} to {stop} are asked of an array of {self._length}")
        size = self._grid.chunk[0]
        result = np.empty((len(columns), stop - start), np.uint32)
        for number in range(start // size, -(-stop // size) if stop > start else 0):
            first, end = max(start, number * size), min(stop, (number + 1) * size)
            matrix = self._matrix(number, columns)
            result[:, first - start : end - start] = matrix[:, first - number * size : end - number * size]
        return result

    def _matrix(self, number: int, columns: tuple[int, ...]) -> Codes:
        """A chunk of rows in some columns; the last one is kept, and replaced in one assignment."""
        last = self._last_matrix
        if last is not None and last[0] == (number, columns):
            return last[1]
        assert self._shard is not None
        matrix = np.empty((len(columns), self._grid.chunk[0]), np.uint32)
        for place, column in enumerate(columns):
            decode_numbers(self._shard.chunk(number * self._columns + column), matrix[place])
        self._last_matrix = ((number, columns), matrix)
        return matrix

    def column_bytes(self) -> list[int]:
        """Bytes of each column, checksums included."""
        if self._shard is None:
            return [0] * self._columns
        return [int(size) for size in self._shard.sizes.reshape(-1, self._columns).sum(axis=0)]

    def decode(self, number: int) -> npt.NDArray[Any]:
        """One chunk, without remembering it."""
        assert self._shard is not None
        into = np.empty(self._chunk_shape, self._dtype)
        (decode_plain if self._grid.level is None else decode_numbers)(self._shard.chunk(number), into)
        return into

    def _chunk(self, number: int, column: int) -> npt.NDArray[Any]:
        last = self._last[column]
        if last is not None and last[0] == number:
            return last[1]
        chunk = self.decode(number)
        chunk.flags.writeable = False
        self._last[column] = (number, chunk)
        return chunk

    @property
    def _chunk_shape(self) -> tuple[int, ...]:
        return self._grid.chunk if self._grid.level is None else self._grid.chunk[:1]

    @property
    def _dtype(self) -> type[np.unsignedinteger[Any]]:
        return np.uint8 if self._grid.level is None else np.uint32
