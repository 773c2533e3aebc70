"""Codecs: the numbers of a chunk to bytes and back, by the name that the manifest gives; and the checksum of a chunk.

In: an array of the manifest. Out: its codec, a member of the table `CODECS`. A chunk in a file is the codec's bytes and
their crc32c, as zarr's codecs store them. The only module that imports pcodec and google_crc32c.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Final, Protocol, final

import google_crc32c
import numpy as np
import numpy.typing as npt
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, standalone

from kdpipe.schemas.arrays import NumberArray, VectorArray
from kdpipe.schemas.choices import CodecName
from kdpipe.schemas.errors import CacheDamaged

CHECKSUM_BYTES = 4
# pcodec's standalone format: magic, version 3, then one byte for "any type" or the type of every chunk in the file.
_HEADS = (b"pco!\x03\x00", b"pco!\x03\x01")
_UINT32, _FORMAT = b"\x01", b"\x04"
_INT_MULT, _LOOKBACK, MAX_DELTA = 1, 2, 3
# No chunk has more numbers than 2^16, so none needs to look back farther.
MAX_WINDOW_LOG = 16


class Codec(Protocol):
    """One way to store a chunk; `zarr_name` and `configuration` are how zarr.json describes it."""

    zarr_name: ClassVar[str]

    @property
    def configuration(self) -> dict[str, Any]:
        """The options of the codec; empty if it has none."""

    def encode(self, values: npt.NDArray[Any]) -> bytes:
        """The bytes of one chunk, without a checksum; equal numbers give equal bytes."""

    def decode(self, data: bytes, into: npt.NDArray[Any]) -> None:
        """Decode a chunk into a buffer that it must fill exactly; anything else is `CacheDamaged`."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Pcodec:
    """uint32 numbers through pcodec at a compression level."""

    zarr_name: ClassVar[str] = "numcodecs.pcodec"
    level: int

    @property
    def configuration(self) -> dict[str, Any]:
        return {"level": self.level}

    def encode(self, values: npt.NDArray[Any]) -> bytes:
        return bytes(standalone.simple_compress(np.ascontiguousarray(values), _config(self.level)))

    def decode(self, data: bytes, into: npt.NDArray[Any]) -> None:
        _check_head(data, len(into))
        try:
            progress: Any = standalone.simple_decompress_into(data, into)
        except BaseException as error:
            # A panic of the decoder arrives as a BaseException of its own.
            if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | MemoryError):
                raise
            raise CacheDamaged(f"a chunk cannot be decoded: {error}") from None
        if progress.n_processed != len(into) or not progress.finished:
            amount = "fewer" if progress.finished else "more"
            raise CacheDamaged(f"a chunk holds {amount} numbers than its array expects")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """uint8 values as they are."""

    zarr_name: ClassVar[str] = "bytes"

    @property
    def configuration(self) -> dict[str, Any]:
        return {}

    def encode(self, values: npt.NDArray[Any]) -> bytes:
        return values.tobytes()

    def decode(self, data: bytes, into: npt.NDArray[Any]) -> None:
        if len(data) != into.nbytes:
            raise CacheDamaged(f"a chunk holds {len(data):,} bytes, its array expects {into.nbytes:,}")
        into.reshape(-1)[:] = np.frombuffer(data, np.uint8)


# A codec is made from the options that its array has in the manifest.
CODECS: Final[Mapping[CodecName, Callable[..., Codec]]] = {"pcodec": Pcodec, "plain": Plain}


def codec_of(array: NumberArray | VectorArray) -> Codec:
    """The codec of an array."""
    return CODECS[array.codec](**array.codec_options)


def crc32c(data: bytes) -> bytes:
    """The checksum of a chunk, as zarr's crc32c codec stores it."""
    return int(google_crc32c.value(data)).to_bytes(CHECKSUM_BYTES, "little")


def checked(data: memoryview, checksum: int) -> bytes:
    """The bytes of a chunk, verified against its crc32c."""
    chunk = bytes(data)
    if google_crc32c.value(chunk) != checksum:
        raise CacheDamaged("a chunk does not match its crc32c")
    return chunk


@lru_cache(maxsize=16)
def _config(level: int) -> ChunkConfig:
    """Classic mode without differences: arrays that gain from differences store them, and a search takes time."""
    return ChunkConfig(compression_level=level, mode_spec=ModeSpec.classic(), delta_spec=DeltaSpec.no_op())


def _check_head(data: bytes, n: int) -> None:
    """Refuse chunks that cost more than their numbers: a decoding table per number, or a huge window."""
    if data.startswith(_usual_head(n)):
        return
    if not data.startswith(_HEADS) or len(data) < 8:
        raise CacheDamaged("a chunk cannot be decoded: not pcodec's standalone format")
    # The number of numbers: 6 bits hold its length in bits less one, then comes the number itself.
    n_bits = (data[6] & 63) + 1
    place = 6 + (6 + n_bits + 7) // 8
    stated = int.from_bytes(data[6:place], "little") >> 6
    head = data[place : place + 6]
    first = 0 if head[2:3] == b"\0" else int.from_bytes(head[3:], "little") + 1
    if head[:1] != _FORMAT or (first and head[2:3] != _UINT32):
        raise CacheDamaged("a chunk cannot be decoded: another format of pcodec, or not uint32")
    if first != n or stated not in (0, n):
        amount = "more" if first > n else "fewer"
        raise CacheDamaged(f"a chunk holds {amount} numbers than its array expects, or several inner chunks")
    meta = int.from_bytes(data[place + 6 : place + 14], "little")
    mode, rest = meta & 15, meta >> 4
    rest >>= 32 if mode == _INT_MULT else 0
    delta, window_log = rest & 15, (rest >> 4 & 31) + 1
    if mode > _INT_MULT or delta > MAX_DELTA or (delta == _LOOKBACK and window_log > MAX_WINDOW_LOG):
        raise CacheDamaged("a chunk cannot be decoded: a mode for other numbers, or a window larger than any chunk")


@lru_cache(maxsize=16)
def _usual_head(n: int) -> bytes:
    """The first bytes of a chunk of n numbers that `Pcodec.encode` wrote, up to its mode and differences."""
    n_bits = n.bit_length()
    hint = (n << 6 | n_bits - 1).to_bytes((6 + n_bits + 7) // 8, "little")
    return _HEADS[0] + hint + _FORMAT + b"\x01" + _UINT32 + (n - 1).to_bytes(3, "little") + b"\0"
