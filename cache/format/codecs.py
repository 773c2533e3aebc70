"""Chunks: numbers to checked bytes and back.

In: one-dimensional arrays. Out: pcodec's standalone format or the plain bytes, each with its crc32c behind it, as
zarr's codecs do. The only module that imports pcodec and google_crc32c.
"""

from functools import lru_cache
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, standalone

from kdpipe.schemas.errors import CacheDamaged

CHECKSUM_BYTES = 4
# pcodec's standalone format: magic, version 3, then one byte for "any type" or the type of every chunk in the file.
_HEADS = (b"pco!\x03\x00", b"pco!\x03\x01")
_UINT32, _FORMAT = b"\x01", b"\x04"
_INT_MULT, _LOOKBACK, MAX_DELTA = 1, 2, 3
# No chunk has more numbers than 2^16, so none needs to look back farther.
MAX_WINDOW_LOG = 16


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
    _check_head(data, len(into))
    try:
        progress: Any = standalone.simple_decompress_into(data, into)
    except BaseException as error:
        # A panic of the decoder arrives as a BaseException of its own.
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | MemoryError):
            raise
        raise CacheDamaged(f"a chunk does not decode: {error}") from None
    if progress.n_processed != len(into) or not progress.finished:
        raise CacheDamaged(f"a chunk holds {'more' if not progress.finished else 'fewer'} numbers than its array says")


def _check_head(data: bytes, n: int) -> None:
    """Refuse what costs more than its numbers: an inner chunk for each (a table of 16,384 states), a huge window."""
    if data.startswith(_usual_head(n)):
        return
    if not data.startswith(_HEADS) or len(data) < 8:
        raise CacheDamaged("a chunk does not decode: it does not begin as pcodec's standalone format does")
    # How many numbers the file has: 6 bits that say how many bits, less one, then the number.
    n_bits = (data[6] & 63) + 1
    place = 6 + (6 + n_bits + 7) // 8
    stated = int.from_bytes(data[6:place], "little") >> 6
    head = data[place : place + 6]
    found = 0 if head[2:3] == b"\0" else int.from_bytes(head[3:], "little") + 1
    if head[:1] != _FORMAT or (found and head[2:3] != _UINT32):
        raise CacheDamaged("a chunk does not decode: it is of another format of pcodec, or not of uint32")
    if found != n or stated not in (0, n):
        raise CacheDamaged(
            f"a chunk holds {'more' if found > n else 'fewer'} numbers than its array says, or in pieces"
        )
    meta = int.from_bytes(data[place + 6 : place + 14], "little")
    mode, rest = meta & 15, meta >> 4
    rest >>= 32 if mode == _INT_MULT else 0
    delta, window_log = rest & 15, (rest >> 4 & 31) + 1
    if mode > _INT_MULT or delta > MAX_DELTA or (delta == _LOOKBACK and window_log > MAX_WINDOW_LOG):
        raise CacheDamaged("a chunk does not decode: its mode is not for whole numbers, or its window larger than it")


@lru_cache(maxsize=16)
def _usual_head(n: int) -> bytes:
    """How a chunk of n numbers begins that `encode_numbers` made, up to its mode and differences."""
    n_bits = n.bit_length()
    hint = (n << 6 | n_bits - 1).to_bytes((6 + n_bits + 7) // 8, "little")
    return _HEADS[0] + hint + _FORMAT + b"\x01" + _UINT32 + (n - 1).to_bytes(3, "little") + b"\0"


def decode_plain(data: bytes, into: npt.NDArray[np.uint8]) -> None:
    """Copy a plain chunk without its checksum into a caller's buffer, which must be exactly filled."""
    if len(data) != into.nbytes:
        raise CacheDamaged(f"a chunk holds {len(data):,} bytes, its array says {into.nbytes:,}")
    into.reshape(-1)[:] = np.frombuffer(data, np.uint8)
