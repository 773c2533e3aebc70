"""Chunks: numbers to checked bytes and back.

In: one-dimensional arrays. Out: pcodec's standalone format or the plain bytes, each with its crc32c behind it, as
zarr's codecs do.
Before it: `laws.py` makes the codes. After it: `shards.py` packs chunks into files. The only module that imports
pcodec and google_crc32c.
"""

from functools import lru_cache
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, standalone

from kdpipe.schemas.errors import CacheDamaged

CHECKSUM_BYTES = 4


def crc32c(data: bytes) -> bytes:
    """The checksum of some bytes as zarr's crc32c codec stores it."""
    return int(google_crc32c.value(data)).to_bytes(CHECKSUM_BYTES, "little")


@lru_cache(maxsize=16)
def _config(level: int) -> ChunkConfig:
    """Classic mode without differences: we have taken those that help already, and looking for others costs time."""
    return ChunkConfig(compression_level=level, mode_spec=ModeSpec.classic(), delta_spec=DeltaSpec.no_op())


def encode_numbers(codes: npt.NDArray[np.uint32], level: int) -> bytes:
    """One chunk of codes through pcodec."""
    data = bytes(standalone.simple_compress(np.ascontiguousarray(codes), _config(level)))
    return data + crc32c(data)


def encode_plain(values: npt.NDArray[np.uint8]) -> bytes:
    """One chunk of bytes as they are."""
    data = values.tobytes()
    return data + crc32c(data)


def checked(data: memoryview, due: int) -> bytes:
    """A chunk's bytes, once they have the crc32c that is due."""
    found = bytes(data)
    if google_crc32c.value(found) != due:
        raise CacheDamaged("a chunk does not match its crc32c")
    return found


def decode_numbers(data: bytes, into: npt.NDArray[np.uint32]) -> None:
    """Decode a chunk without its checksum into a caller's buffer, which must be exactly filled."""
    try:
        progress: Any = standalone.simple_decompress_into(data, into)
    except BaseException as error:
        # A panic of the decoder arrives as a BaseException of its own.
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | MemoryError):
            raise
        raise CacheDamaged(f"a chunk does not decode: {error}") from None
    if progress.n_processed != len(into) or not progress.finished:
        raise CacheDamaged(f"a chunk holds {'more' if not progress.finished else 'fewer'} numbers than its array says")


def decode_plain(data: bytes, into: npt.NDArray[np.uint8]) -> None:
    """Copy a plain chunk without its checksum into a caller's buffer, which must be exactly filled."""
    if len(data) != into.nbytes:
        raise CacheDamaged(f"a chunk holds {len(data):,} bytes, its array says {into.nbytes:,}")
    into.reshape(-1)[:] = np.frombuffer(data, np.uint8)
