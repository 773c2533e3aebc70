"""What every member of a table must do, as a suite of tests to inherit: the codecs of `CODECS`.

In: an array of the manifest for each codec, given by the class that inherits. Out: its tests.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kdpipe.cache.format.codecs import CHECKSUM_BYTES, Codec, checked, codec_of, crc32c
from kdpipe.schemas.arrays import NumberArray, VectorArray
from kdpipe.schemas.errors import CacheDamaged

Numbers = npt.NDArray[Any]


def stored(codec: Codec, values: Numbers) -> bytes:
    """A chunk as it is in a file: encoded, with its checksum."""
    data = codec.encode(values)
    return data + crc32c(data)


def read_stored(codec: Codec, chunk: bytes, into: Numbers) -> None:
    """Decode a chunk of a file, after a check of its checksum."""
    data = checked(memoryview(chunk)[:-CHECKSUM_BYTES], int.from_bytes(chunk[-CHECKSUM_BYTES:], "little"))
    codec.decode(data, into)


class CodecContract:
    """A subclass parametrizes `array`: an array of the manifest, whose codec and dtype are tested."""

    @pytest.fixture
    def codec(self, array: NumberArray | VectorArray) -> Codec:
        return codec_of(array)

    @pytest.fixture
    def dtype(self, array: NumberArray | VectorArray) -> "np.dtype[Any]":
        return np.dtype(array.dtype)

    @staticmethod
    def numbers(n: int, dtype: "np.dtype[Any]") -> Numbers:
        """Numbers of a skewed distribution, the largest possible one among them."""
        values = np.random.default_rng(0).geometric(0.05, n).astype(dtype)
        if n:
            values[n // 2] = np.iinfo(dtype).max
        return values

    @pytest.mark.parametrize("n", [1, 2, 63, 64, 255, 256, 257, 2048, 65_536])
    def test_numbers_survive_a_round_trip(self, codec: Codec, dtype: "np.dtype[Any]", n: int) -> None:
        values = self.numbers(n, dtype)
        into = np.full(n, 77, dtype)
        codec.decode(codec.encode(values), into)
        np.testing.assert_array_equal(into, values)

    @pytest.mark.parametrize("value", [0, 1, 255])
    def test_equal_numbers_survive_a_round_trip(self, codec: Codec, dtype: "np.dtype[Any]", value: int) -> None:
        into = np.empty(500, dtype)
        codec.decode(codec.encode(np.full(500, value, dtype)), into)
        assert (into == value).all()

    def test_equal_numbers_make_equal_bytes(self, codec: Codec, dtype: "np.dtype[Any]") -> None:
        strided = np.repeat(self.numbers(300, dtype), 2)[::2]
        assert codec.encode(strided) == codec.encode(self.numbers(300, dtype))

    def test_only_the_given_buffer_is_filled(self, codec: Codec, dtype: "np.dtype[Any]") -> None:
        around = np.full(120, 9, dtype)
        codec.decode(codec.encode(self.numbers(100, dtype)), around[10:110])
        np.testing.assert_array_equal(around[10:110], self.numbers(100, dtype))
        assert around[:10].tolist() == around[110:].tolist() == [9] * 10

    def test_every_flipped_bit_is_noticed(self, codec: Codec, dtype: "np.dtype[Any]") -> None:
        chunk = stored(codec, self.numbers(40, dtype))
        for place in range(len(chunk)):
            for bit in (0, 3, 7):
                damaged = bytearray(chunk)
                damaged[place] ^= 1 << bit
                with pytest.raises(CacheDamaged, match="crc32c"):
                    read_stored(codec, bytes(damaged), np.empty(40, dtype))

    def test_a_chunk_cut_short_anywhere_is_refused(self, codec: Codec, dtype: "np.dtype[Any]") -> None:
        data = codec.encode(self.numbers(40, dtype))
        for length in range(len(data)):
            with pytest.raises(CacheDamaged):
                codec.decode(data[:length], np.empty(40, dtype))

    @pytest.mark.parametrize(("held", "expected"), [(100, 99), (99, 100), (300, 256), (256, 300), (1, 2), (0, 3)])
    def test_a_chunk_of_another_length_is_refused(
        self, codec: Codec, dtype: "np.dtype[Any]", held: int, expected: int
    ) -> None:
        data = codec.encode(self.numbers(held, dtype))
        with pytest.raises(CacheDamaged):
            codec.decode(data, np.empty(expected, dtype))

    @pytest.mark.parametrize("data", [b"", b"\0", b"nonsense" * 20, b"\xff" * 64])
    def test_nonsense_is_refused(self, codec: Codec, dtype: "np.dtype[Any]", data: bytes) -> None:
        with pytest.raises(CacheDamaged):
            codec.decode(data, np.empty(9, dtype))
