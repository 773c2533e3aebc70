"""Thrift's compact protocol, as Parquet's footers and page headers use it: a struct becomes a dictionary.

In: bytes of anyone's making. Out: plain Python values by field number, or a ValueError. Parquet's own library ends the
process at some of these bytes, so they are read here first. No value takes more than its bytes: depth and counts are
bounded by what is left of the input.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

MAX_DEPTH = 16
_TRUE, _FALSE, _BYTE, _I16, _DOUBLE, _SET, _STRUCT = 1, 2, 3, 4, 7, 10, 12
I32: Final = 5
I64: Final = 6
BINARY: Final = 8
LIST: Final = 9
MOST_BITS = {_I16: 16, I32: 32, I64: 64}
# The fields of a struct that are of use, with their types; for a struct within it, those of that one.
Shape = Mapping[int, "int | Shape"]


class CompactReader:
    """Reads values one after the other; `place` is where the next one begins."""

    def __init__(self, data: bytes, place: int, end: int) -> None:
        if not 0 <= place <= end <= len(data):
            raise ValueError("a struct is outside the file")
        self._data, self.place, self._end = data, place, end

    def struct(self, depth: int = 0, shape: Shape | None = None) -> dict[int, Any]:
        """The fields of a struct by number; with a shape those that it has, which must be of its types."""
        fields: dict[int, Any] = {}
        for number, kind in self.fields(depth):
            if shape is None:
                fields[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth)
            elif (expected := shape.get(number)) is None:
                self.skip(kind, depth)
            elif kind != (expected if isinstance(expected, int) else _STRUCT):
                raise ValueError(f"field {number} of a struct is of type {kind}")
            elif isinstance(expected, int):
                fields[number] = self._value(kind, depth)
            else:
                fields[number] = self.struct(depth + 1, expected)
        return fields

    def fields(self, depth: int = 0) -> Iterator[tuple[int, int]]:
        """Number and type of each field, at most once; the caller reads or skips its value before the next."""
        if depth > MAX_DEPTH:
            raise ValueError(f"structs are nested deeper than {MAX_DEPTH} levels")
        known, number = set(), 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._integer(16)
            if number in known or number < 0:
                raise ValueError(f"a struct has field {number} twice, or below 0")
            known.add(number)
            yield number, head & 15

    def number(self, kind: int) -> int:
        """A number of type I32 or I64."""
        return self._integer(MOST_BITS[kind])

    def structs(self, kind: int, depth: int = 0) -> Iterator[int]:
        """The places in a list of structs; the caller reads each before the next."""
        element, count = self._head(depth + 1)
        if kind != LIST or (count and element != _STRUCT):
            raise ValueError("a list of structs was expected")
        yield from range(count)

    def skip(self, kind: int, depth: int) -> None:
        """Pass a value over; nothing of it is kept, however many values it has."""
        if kind == _STRUCT:
            for _, inner in self.fields(depth + 1):
                self.skip(inner, depth + 1)
        elif kind in (LIST, _SET):
            element, count = self._head(depth + 1)
            for _ in range(count):
                self._byte() if element in (_TRUE, _FALSE) else self.skip(element, depth + 1)
        elif kind == BINARY:
            self._check_left(self._varint(32))
        elif kind not in (_TRUE, _FALSE):
            self._value(kind, depth)

    def _value(self, kind: int, depth: int) -> Any:
        if kind in MOST_BITS:
            return self._integer(MOST_BITS[kind])
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind == BINARY:
            return self._bytes(self._varint(32))
        if kind in (LIST, _SET):
            return self._list(depth + 1)
        if kind in (_BYTE, _TRUE, _FALSE):  # inside a list a boolean takes a byte
            return self._byte()
        if kind == _DOUBLE:
            return self._bytes(8)
        raise ValueError(f"a value of unknown type {kind}")

    def _list(self, depth: int) -> list[Any]:
        element, count = self._head(depth)
        return [self._value(element, depth) for _ in range(count)]

    def _head(self, depth: int) -> tuple[int, int]:
        """The type of a list's elements, and how many it has."""
        head = self._byte()
        count = head >> 4 if head >> 4 < 15 else self._varint(32)
        # Every element takes a byte or more.
        if count > self._end - self.place or depth > MAX_DEPTH:
            raise ValueError(f"a list claims {count:,} values in {self._end - self.place:,} bytes")
        return head & 15, count

    def _byte(self) -> int:
        if self.place >= self._end:
            raise ValueError("a struct does not end")
        self.place += 1
        return self._data[self.place - 1]

    def _bytes(self, count: int) -> bytes:
        self._check_left(count)
        return self._data[self.place - count : self.place]

    def _check_left(self, count: int) -> None:
        if count > self._end - self.place:
            raise ValueError(f"a text claims {count:,} bytes, {self._end - self.place:,} are left")
        self.place += count

    def _varint(self, bits: int) -> int:
        """A number without a sign, seven bits a byte."""
        value = shift = 0
        while shift < bits:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                if value >> bits:
                    break
                return value
        raise ValueError(f"a number has more than {bits} bits")

    def _integer(self, bits: int) -> int:
        """A number with a sign, which is its lowest bit."""
        value = self._varint(bits)
        return (value >> 1) ^ -(value & 1)
