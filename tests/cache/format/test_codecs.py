"""Both codecs keep the codec contract, and store what zarr's codecs of these names would."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numcodecs.pcodec import PCodec
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, standalone

from kdpipe.cache.format import codecs
from kdpipe.cache.format.codecs import decode_numbers, encode_numbers
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


def bits(fields: list[tuple[int, int]]) -> bytes:
    """Numbers of so many bits each, packed from the lowest on."""
    value = place = 0
    for number, width in fields:
        value, place = value | number << place, place + width
    return value.to_bytes(-(-place // 8), "little")


def in_inner_chunks(n: int) -> bytes:
    """n numbers, each in an inner chunk that says how to decode it: a table of 16,384 states."""
    bins = [(8191, 14), (0, 32), (0, 6), (8191, 14), (1, 32), (0, 6)]
    meta = bits([(0, 4), (0, 4), (14, 4), (2, 15), *bins])
    one = b"\x01" + (0).to_bytes(3, "little") + meta + bits([(0, 14)] * 4) + b"\0"
    hint = bits([(n.bit_length() - 1, 6), (n, n.bit_length())])
    return b"pco!\x03\x00" + hint + b"\x04\x01" + one * n + b"\0"


def test_a_chunk_that_needs_a_table_for_each_number_is_refused() -> None:
    assert len(standalone.simple_decompress(in_inner_chunks(64))) == 64
    for n in (64, 65_536):
        with pytest.raises(CacheDamaged, match="in pieces"):
            decode_numbers(in_inner_chunks(n), np.empty(n, np.uint32))


def looking_back(window_log: int) -> bytes:
    """64 numbers as differences from earlier ones, with a window of 2^window_log numbers."""
    numbers = np.tile(np.arange(8, dtype=np.uint32) * 2_654_435_761 % (1 << 31), 8).astype(np.uint32)
    data = bytearray(standalone.simple_compress(numbers, ChunkConfig(delta_spec=DeltaSpec.try_lookback())))
    place = data.index(b"\x04\x01\x01") + 6
    assert data[place] == 2 << 4
    data[place + 1] = data[place + 1] & 0xE0 | (window_log - 1)
    return bytes(data)


def test_a_window_larger_than_any_chunk_is_refused() -> None:
    decode_numbers(looking_back(6), np.empty(64, np.uint32))
    decode_numbers(looking_back(16), np.empty(64, np.uint32))
    for window_log in (17, 24, 25, 32):
        with pytest.raises(CacheDamaged, match="its window larger"):
            decode_numbers(looking_back(window_log), np.empty(64, np.uint32))


@pytest.mark.parametrize("stated", [1, 63, (1 << 32) - 1])
def test_a_file_that_claims_another_number_of_numbers_is_refused(stated: int) -> None:
    """Other decoders of the same cache make room for as many."""
    data = encode_numbers(np.zeros(64, np.uint32), 8)[:-4]
    hint = bits([(stated.bit_length() - 1, 6), (stated, stated.bit_length())])
    with pytest.raises(CacheDamaged, match="fewer numbers"):
        decode_numbers(data[:6] + hint + data[8:], np.empty(64, np.uint32))


@pytest.mark.parametrize("mode", ["auto", "classic", "try_int_mult"])
@pytest.mark.parametrize("delta", ["auto", "no_op", "try_consecutive", "try_lookback", "try_conv1"])
@pytest.mark.parametrize("n", [64, 1000, 8192, 65_536])
def test_numbers_that_another_program_has_coded_in_any_mode_are_read(mode: str, delta: str, n: int) -> None:
    arguments: dict[str, Any] = {"try_consecutive": (3,), "try_conv1": (2,), "try_int_mult": (7,)}
    spec = getattr(ModeSpec, mode)(*arguments.get(mode, ()))
    config = ChunkConfig(mode_spec=spec, delta_spec=getattr(DeltaSpec, delta)(*arguments.get(delta, ())))
    for numbers in (np.arange(n) * 7, np.tile(np.arange(16) * 12_345, -(-n // 16))[:n], np.arange(n) ** 2 % 65_521):
        codes = numbers.astype(np.uint32)
        into = np.empty(n, np.uint32)
        decode_numbers(bytes(standalone.simple_compress(codes, config)), into)
        assert np.array_equal(into, codes)
