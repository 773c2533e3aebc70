"""Shards: one file an array, chunks one behind the other and an index at the end, as zarr's sharding codec lays them
out.

In: encoded chunks, or a file. Out: a file, or the checked places of its chunks.
Before it: `codecs.py`. After it: `part_writer.py` and `part_reader.py`; `zarr_json.py` describes the same bytes to
zarr.
"""

from typing import BinaryIO

import numpy as np

from kdpipe.cache.codecs import CHECKSUM_BYTES, crc32c
from kdpipe.schemas.errors import CacheDamaged

PLACE_BYTES = 16


class ShardWriter:
    """Appends chunks to a file in any order; the index names them by their number in the grid."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._places: dict[int, tuple[int, int]] = {}
        self._end = 0

    def add(self, number: int, chunk: bytes) -> None:
        """Write a chunk."""
        self._file.write(chunk)
        self._places[number] = (self._end, len(chunk))
        self._end += len(chunk)

    def finish(self, n_chunks: int) -> None:
        """Write the index of a grid of n_chunks, all of which must have come."""
        assert sorted(self._places) == list(range(n_chunks)), "every chunk of the grid is written once"
        index = np.array([self._places[number] for number in range(n_chunks)], "<u8").tobytes()
        self._file.write(index + crc32c(index))


class Shard:
    """The chunks of one file, with every offset checked before any is used."""

    def __init__(self, data: memoryview, n_chunks: int) -> None:
        index_bytes = n_chunks * PLACE_BYTES
        end = len(data) - index_bytes - CHECKSUM_BYTES
        if end < 0:
            raise CacheDamaged(f"a shard of {len(data):,} bytes is too short for the index of its {n_chunks:,} chunks")
        index = bytes(data[end : end + index_bytes])
        if crc32c(index) != data[end + index_bytes :]:
            raise CacheDamaged("a shard's index does not match its crc32c")
        places = np.frombuffer(index, "<u8").reshape(n_chunks, 2)
        _check_places(places, end)
        self._data = data
        self._places = places.astype(np.int64)

    def __len__(self) -> int:
        return len(self._places)

    def chunk(self, number: int) -> memoryview:
        """The bytes of a chunk with its checksum."""
        offset, size = self._places[number].tolist()
        return self._data[offset : offset + size]

    @property
    def sizes(self) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
        """Bytes of every chunk."""
        return self._places[:, 1]


def _check_places(places: "np.ndarray[tuple[int, int], np.dtype[np.uint64]]", end: int) -> None:
    """Chunks must fill the file up to its index: none missing, none outside, no gap and no overlap."""
    if (places > end).any():
        raise CacheDamaged("a shard's index names a missing chunk, or one outside the file")
    ordered = places[np.argsort(places[:, 0], kind="stable")].astype(np.int64)
    starts = np.concatenate([[0], ordered[:, 0] + ordered[:, 1]])
    if (ordered[:, 1] <= CHECKSUM_BYTES).any() or (starts[:-1] != ordered[:, 0]).any() or starts[-1] != end:
        raise CacheDamaged("a shard's chunks overlap or leave gaps")
