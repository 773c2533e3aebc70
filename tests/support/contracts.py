"""What every implementation of a seam must do, as suites of tests to inherit.

In: an implementation, given by the class that inherits. Out: its tests.
"""

from typing import Any, ClassVar, Protocol

import google_crc32c
import numpy as np
import numpy.typing as npt
import pytest

from kdpipe.schemas.errors import CacheDamaged

Numbers = npt.NDArray[Any]


class Codec(Protocol):
    """Numbers to a checked chunk, and back into a buffer of the caller's."""

    def encode(self, values: Numbers) -> bytes:
        """One chunk."""

    def decode(self, chunk: memoryview, into: Numbers) -> None:
        """Fill a buffer from a chunk."""


class CodecContract:
    """Subclasses give `codec`, the `dtype` of its numbers, and are collected as Test*."""

    codec: ClassVar[Codec]
    dtype: ClassVar[type[np.unsignedinteger[Any]]]

    def numbers(self, n: int, seed: int = 0) -> Numbers:
        """Numbers of a skewed distribution with the largest possible one among them."""
        found = np.random.default_rng(seed).geometric(0.05, n).astype(self.dtype)
        if n:
            found[n // 2] = np.iinfo(self.dtype).max
        return found

    @pytest.mark.parametrize("n", [1, 2, 63, 64, 255, 256, 257, 2048, 70_000])
    def test_a_chunk_gives_its_numbers_back(self, n: int) -> None:
        values = self.numbers(n)
        into = np.full(n, 77, self.dtype)
        self.codec.decode(memoryview(self.codec.encode(values)), into)
        np.testing.assert_array_equal(into, values)

    @pytest.mark.parametrize("value", [0, 1, 255])
    def test_equal_numbers_come_back(self, value: int) -> None:
        values = np.full(500, value, self.dtype)
        into = np.empty(500, self.dtype)
        self.codec.decode(memoryview(self.codec.encode(values)), into)
        assert (into == value).all()

    def test_equal_numbers_make_equal_bytes(self) -> None:
        strided = np.repeat(self.numbers(300), 2)[::2]
        assert self.codec.encode(strided) == self.codec.encode(self.numbers(300))

    def test_only_the_buffer_it_is_given_is_filled(self) -> None:
        around = np.full(120, 9, self.dtype)
        self.codec.decode(memoryview(self.codec.encode(self.numbers(100))), around[10:110])
        np.testing.assert_array_equal(around[10:110], self.numbers(100))
        assert around[:10].tolist() == around[110:].tolist() == [9] * 10

    def test_every_flipped_bit_is_noticed(self) -> None:
        chunk = self.codec.encode(self.numbers(40))
        for place in range(len(chunk)):
            for bit in (0, 3, 7):
                damaged = bytearray(chunk)
                damaged[place] ^= 1 << bit
                with pytest.raises(CacheDamaged, match="crc32c"):
                    self.codec.decode(memoryview(damaged), np.empty(40, self.dtype))

    def test_a_chunk_cut_short_at_any_place_is_noticed(self) -> None:
        chunk = self.codec.encode(self.numbers(40))
        for length in range(len(chunk)):
            with pytest.raises(CacheDamaged):
                self.codec.decode(memoryview(chunk[:length]), np.empty(40, self.dtype))

    @pytest.mark.parametrize(("held", "asked"), [(100, 99), (99, 100), (300, 256), (256, 300), (1, 2), (0, 3)])
    def test_a_chunk_of_another_length_is_refused(self, held: int, asked: int) -> None:
        chunk = self.codec.encode(self.numbers(held))
        with pytest.raises(CacheDamaged, match=r"a chunk (holds|does not decode)"):
            self.codec.decode(memoryview(chunk), np.empty(asked, self.dtype))

    @pytest.mark.parametrize("data", [b"", b"\0", b"nonsense" * 20, b"\xff" * 64])
    def test_nonsense_with_a_good_checksum_is_refused(self, data: bytes) -> None:
        chunk = data + int(google_crc32c.value(data)).to_bytes(4, "little")
        with pytest.raises(CacheDamaged, match=r"a chunk (holds|does not decode)"):
            self.codec.decode(memoryview(chunk), np.empty(9, self.dtype))
