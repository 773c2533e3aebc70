"""Shards: one file per array, its chunks followed by an index, in the layout of zarr's sharding codec. Between the two,
where zarr never looks, the checksums of the chunks are repeated: part.json has the sha256 of these and the index, so
that every chunk is known to be the one that was written, at the place where it was written.

In: encoded chunks, or a file. Out: a file, or the checked places of its chunks.
"""

from array import array
from typing import BinaryIO

import numpy as np

from kdpipe.cache.format.codecs import CHECKSUM_BYTES, checked, crc32c
from kdpipe.schemas.errors import CacheDamaged
from kdpipe.schemas.strict_json import sha256_hex

PLACE_BYTES = 16


class ShardWriter:
    """Appends chunks and their checksums to a file in any order; the index gives the place of each in the grid."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._places: dict[int, tuple[int, int]] = {}
        self._checksums: dict[int, bytes] = {}
        self._end = 0

    def add(self, number: int, chunk: bytes) -> int:
        """Write an encoded chunk and its checksum; the bytes of both."""
        checksum = crc32c(chunk)
        size = self._file.write(chunk + checksum)
        self._places[number] = (self._end, size)
        self._checksums[number] = checksum
        self._end += size
        return size

    def finish(self, n_chunks: int) -> str:
        """Write checksums and index of a grid, all of whose chunks have been added; the sha256 of both."""
        assert sorted(self._places) == list(range(n_chunks)), "every chunk of the grid is added once"
        index = np.array([self._places[number] for number in range(n_chunks)], "<u8").tobytes()
        tail = b"".join(self._checksums[number] for number in range(n_chunks)) + index + crc32c(index)
        self._file.write(tail)
        return sha256_hex(tail)


class Shard:
    """The chunks of one file, every offset checked before use; `sha256` of the index comes from part.json."""

    def __init__(self, data: memoryview, n_chunks: int, sha256: str) -> None:
        end = len(data) - n_chunks * (CHECKSUM_BYTES + PLACE_BYTES) - CHECKSUM_BYTES
        if end < 0:
            raise CacheDamaged(f"a shard of {len(data):,} bytes is too short for the index of its {n_chunks:,} chunks")
        tail = bytes(data[end:])
        if sha256_hex(tail) != sha256:
            raise CacheDamaged("a shard's index does not match the sha256 in part.json")
        index = tail[n_chunks * CHECKSUM_BYTES : -CHECKSUM_BYTES]
        if crc32c(index) != tail[-CHECKSUM_BYTES:]:
            raise CacheDamaged("a shard's index does not match its crc32c")
        places = np.frombuffer(index, "<u8").reshape(n_chunks, 2)
        _check_places(places, end)
        self._data = data
        self._checksums = np.frombuffer(tail, "<u4", n_chunks).tolist()
        self._sizes = places[:, 1].astype(np.int64)
        # A flat array of machine integers: small, and fast to index one by one.
        self._places = array("Q", places.tobytes())

    def __len__(self) -> int:
        return len(self._sizes)

    def chunk(self, number: int) -> bytes:
        """A chunk without its checksum, verified against the checksum of this place in the grid."""
        offset, size = self._places[2 * number], self._places[2 * number + 1]
        return checked(self._data[offset : offset + size - CHECKSUM_BYTES], self._checksums[number])

    @property
    def sizes(self) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
        """Bytes of every chunk, checksums included."""
        return self._sizes


def _check_places(places: "np.ndarray[tuple[int, int], np.dtype[np.uint64]]", end: int) -> None:
    """Refuse chunks that do not fill the file up to the checksums: missing, outside, with gaps or overlaps."""
    if (places > end).any():
        raise CacheDamaged("a shard's index names a missing chunk, or one outside the file")
    ordered = places[np.argsort(places[:, 0], kind="stable")].astype(np.int64)
    starts = np.concatenate([[0], ordered[:, 0] + ordered[:, 1]])
    if (ordered[:, 1] <= CHECKSUM_BYTES).any() or (starts[:-1] != ordered[:, 0]).any() or starts[-1] != end:
        raise CacheDamaged("a shard's chunks overlap or leave gaps")
