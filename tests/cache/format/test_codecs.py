"""Every codec of the table keeps the contract, and stores what zarr's codec of its name would."""

from typing import Any, get_args

import numpy as np
import pytest
from numcodecs.pcodec import PCodec
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, standalone

from kdpipe.cache.format.codecs import CODECS, Pcodec, Plain, checked, codec_of, crc32c
from kdpipe.schemas.arrays import NumberArray, VectorArray
from kdpipe.schemas.choices import NumberCodec, VectorCodec
from kdpipe.schemas.errors import CacheDamaged
from support.contracts import CodecContract, stored

PCODEC = Pcodec(level=8)
ARRAYS = [
    *(NumberArray(codec=name, level=level) for name in get_args(NumberCodec) for level in (0, 8)),
    *(VectorArray(codec=name, row_bytes=1) for name in get_args(VectorCodec)),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: repr(codec_of(array)))
class TestCodecs(CodecContract):
    """The contract, for each codec in the table."""


def test_the_contract_covers_every_codec_of_the_table() -> None:
    assert {array.codec for array in ARRAYS} == CODECS.keys()


def test_the_checksum_is_crc32c() -> None:
    assert crc32c(b"123456789") == 0xE3069283.to_bytes(4, "little")  # RFC 3720, B.4
    assert checked(memoryview(b"123456789"), 0xE3069283) == b"123456789"


def test_numcodecs_reads_what_is_written() -> None:
    values = np.random.default_rng(0).geometric(0.01, 5000).astype(np.uint32)
    decoded = PCodec().decode(PCODEC.encode(values))
    np.testing.assert_array_equal(np.frombuffer(decoded, np.uint32), values)


def test_skewed_numbers_take_about_their_entropy() -> None:
    values = np.random.default_rng(0).geometric(0.2, 16_384).astype(np.uint32)
    counts = np.bincount(values)
    p = counts[counts > 0] / len(values)
    entropy_bytes = float(-(p * np.log2(p)).sum()) * len(values) / 8
    assert len(PCODEC.encode(values)) < 1.03 * entropy_bytes + 200


def test_plain_rows_fill_a_buffer_of_rows() -> None:
    rows = np.arange(60, dtype=np.uint8).reshape(12, 5)
    into = np.zeros((12, 5), np.uint8)
    Plain().decode(Plain().encode(rows), into)
    np.testing.assert_array_equal(into, rows)


def test_a_panic_of_the_decoder_is_a_damaged_chunk_and_an_interrupt_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        """What pyo3 raises where Rust panics."""

    data = PCODEC.encode(np.arange(9, dtype=np.uint32))
    for raised, expected in ((Panic("index out of bounds"), CacheDamaged), (KeyboardInterrupt(), KeyboardInterrupt)):

        def fail(*_: Any, error: BaseException = raised) -> None:
            raise error

        monkeypatch.setattr(standalone, "simple_decompress_into", fail)
        with pytest.raises(expected):
            PCODEC.decode(data, np.empty(9, np.uint32))


def test_an_empty_chunk_is_its_checksum() -> None:
    assert stored(Plain(), np.zeros(0, np.uint8)) == crc32c(b"")


def bits(fields: list[tuple[int, int]]) -> bytes:
    """Numbers packed from the lowest bit up; each comes with its width."""
    value = place = 0
    for number, width in fields:
        value, place = value | number << place, place + width
    return value.to_bytes(-(-place // 8), "little")


def in_inner_chunks(n: int) -> bytes:
    """n numbers, each in an inner chunk with a decoding table of 16,384 states."""
    bins = [(8191, 14), (0, 32), (0, 6), (8191, 14), (1, 32), (0, 6)]
    meta = bits([(0, 4), (0, 4), (14, 4), (2, 15), *bins])
    one = b"\x01" + (0).to_bytes(3, "little") + meta + bits([(0, 14)] * 4) + b"\0"
    hint = bits([(n.bit_length() - 1, 6), (n, n.bit_length())])
    return b"pco!\x03\x00" + hint + b"\x04\x01" + one * n + b"\0"


def test_a_chunk_that_needs_a_table_for_each_number_is_refused() -> None:
    assert len(standalone.simple_decompress(in_inner_chunks(64))) == 64
    for n in (64, 65_536):
        with pytest.raises(CacheDamaged, match="several inner chunks"):
            PCODEC.decode(in_inner_chunks(n), np.empty(n, np.uint32))


def looking_back(window_log: int) -> bytes:
    """64 numbers as differences from earlier ones, with a window of 2^window_log numbers."""
    numbers = np.tile(np.arange(8, dtype=np.uint32) * 2_654_435_761 % (1 << 31), 8).astype(np.uint32)
    data = bytearray(standalone.simple_compress(numbers, ChunkConfig(delta_spec=DeltaSpec.try_lookback())))
    place = data.index(b"\x04\x01\x01") + 6
    assert data[place] == 2 << 4
    data[place + 1] = data[place + 1] & 0xE0 | (window_log - 1)
    return bytes(data)


def test_a_window_larger_than_any_chunk_is_refused() -> None:
    PCODEC.decode(looking_back(6), np.empty(64, np.uint32))
    PCODEC.decode(looking_back(16), np.empty(64, np.uint32))
    for window_log in (17, 24, 25, 32):
        with pytest.raises(CacheDamaged, match="window larger"):
            PCODEC.decode(looking_back(window_log), np.empty(64, np.uint32))


@pytest.mark.parametrize("stated", [1, 63, (1 << 32) - 1])
def test_a_file_that_claims_another_number_of_numbers_is_refused(stated: int) -> None:
    """Other decoders of the same cache allocate memory for the stated number."""
    data = PCODEC.encode(np.zeros(64, np.uint32))
    hint = bits([(stated.bit_length() - 1, 6), (stated, stated.bit_length())])
    with pytest.raises(CacheDamaged, match="fewer numbers"):
        PCODEC.decode(data[:6] + hint + data[8:], np.empty(64, np.uint32))


@pytest.mark.parametrize("mode", ["auto", "classic", "try_int_mult"])
@pytest.mark.parametrize("delta", ["auto", "no_op", "try_consecutive", "try_lookback", "try_conv1"])
@pytest.mark.parametrize("n", [64, 1000, 8192, 65_536])
def test_chunks_in_any_mode_of_another_encoder_are_read(mode: str, delta: str, n: int) -> None:
    arguments: dict[str, Any] = {"try_consecutive": (3,), "try_conv1": (2,), "try_int_mult": (7,)}
    spec = getattr(ModeSpec, mode)(*arguments.get(mode, ()))
    config = ChunkConfig(mode_spec=spec, delta_spec=getattr(DeltaSpec, delta)(*arguments.get(delta, ())))
    for numbers in (np.arange(n) * 7, np.tile(np.arange(16) * 12_345, -(-n // 16))[:n], np.arange(n) ** 2 % 65_521):
        codes = numbers.astype(np.uint32)
        into = np.empty(n, np.uint32)
        PCODEC.decode(bytes(standalone.simple_compress(codes, config)), into)
        assert np.array_equal(into, codes)
