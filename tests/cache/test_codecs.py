"""Both codecs keep the codec contract, and store what zarr's codecs of these names would."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numcodecs.pcodec import PCodec
from pcodec import standalone

from kdpipe.cache import codecs
from kdpipe.schemas.errors import CacheDamaged
from support.contracts import CodecContract, Numbers


def opened(chunk: memoryview) -> bytes:
    """A chunk's bytes, held against the checksum that it ends in."""
    return codecs.checked(chunk[:-4], int.from_bytes(chunk[-4:], "little"))


@dataclass(frozen=True)
class NumbersCodec:
    """pcodec at a level."""

    level: int

    def encode(self, values: Numbers) -> bytes:
        return codecs.encode_numbers(values, self.level)

    def decode(self, chunk: memoryview, into: Numbers) -> None:
        codecs.decode_numbers(opened(chunk), into)


class PlainCodec:
    """Bytes as they are."""

    def encode(self, values: Numbers) -> bytes:
        return codecs.encode_plain(values)

    def decode(self, chunk: memoryview, into: Numbers) -> None:
        codecs.decode_plain(opened(chunk), into)


class TestNumbers(CodecContract):
    codec = NumbersCodec(8)
    dtype = np.uint32


class TestNumbersAtTheLowestLevel(CodecContract):
    codec = NumbersCodec(0)
    dtype = np.uint32


class TestPlain(CodecContract):
    codec = PlainCodec()
    dtype = np.uint8


def test_the_checksum_is_crc32c() -> None:
    assert codecs.crc32c(b"123456789") == 0xE3069283.to_bytes(4, "little")  # RFC 3720, B.4
    assert codecs.encode_plain(np.frombuffer(b"123456789", np.uint8)) == b"123456789" + codecs.crc32c(b"123456789")


def test_numcodecs_reads_what_is_written() -> None:
    values = np.random.default_rng(0).geometric(0.01, 5000).astype(np.uint32)
    decoded = PCodec().decode(codecs.encode_numbers(values, 8)[:-4])
    np.testing.assert_array_equal(np.frombuffer(decoded, np.uint32), values)


def test_skewed_numbers_take_about_their_entropy() -> None:
    values = np.random.default_rng(0).geometric(0.2, 16_384).astype(np.uint32)
    counts = np.bincount(values)
    p = counts[counts > 0] / len(values)
    entropy_bytes = float(-(p * np.log2(p)).sum()) * len(values) / 8
    assert len(codecs.encode_numbers(values, 8)) < 1.03 * entropy_bytes + 200


def test_plain_rows_fill_a_buffer_of_rows() -> None:
    rows = np.arange(60, dtype=np.uint8).reshape(12, 5)
    into = np.zeros((12, 5), np.uint8)
    codecs.decode_plain(opened(memoryview(codecs.encode_plain(rows))), into)
    np.testing.assert_array_equal(into, rows)


def test_a_decoder_that_panics_is_a_damaged_chunk_and_an_interrupt_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        """What pyo3 raises where Rust panics."""

    chunk = memoryview(codecs.encode_numbers(np.arange(9, dtype=np.uint32), 8))
    for raised, seen in ((Panic("index out of bounds"), CacheDamaged), (KeyboardInterrupt(), KeyboardInterrupt)):

        def fail(*_: Any, error: BaseException = raised) -> None:
            raise error

        monkeypatch.setattr(standalone, "simple_decompress_into", fail)
        with pytest.raises(seen):
            codecs.decode_numbers(opened(chunk), np.empty(9, np.uint32))


def test_a_checksum_is_all_that_a_chunk_needs_to_have() -> None:
    nothing: npt.NDArray[np.uint8] = np.zeros(0, np.uint8)
    assert opened(memoryview(codecs.encode_plain(nothing))) == b""
