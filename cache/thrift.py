"""Thrift's compact protocol, as Parquet's footers and page headers use it: a struct becomes a dictionary.

In: bytes of anyone's making. Out: plain Python values by field number, or a ValueError. Parquet's own library ends the
process at some of these bytes, so they are read here first. No value takes more than its bytes: depth and counts are
bounded by what is left of the input.
"""

from typing import Any

MAX_DEPTH = 16
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12
MOST_BITS = {_I16: 16, _I32: 32, _I64: 64}


class CompactReader:
    """Reads values one after the other; `place` is where the next one begins."""

    def __init__(self, data: bytes, place: int, end: int) -> None:
        if not 0 <= place <= end <= len(data):
            raise ValueError("a struct lies outside the file")
        self._data, self.place, self._end = data, place, end

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """The fields of a struct by number; each at most once."""
        if depth > MAX_DEPTH:
            raise ValueError(f"structs are nested deeper than {MAX_DEPTH} levels")
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._integer(16)
            if number in fields or number < 0:
                raise ValueError(f"a struct has field {number} twice, or below 0")
            kind = head & 15
            fields[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in MOST_BITS:
            return self._integer(MOST_BITS[kind])
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind == _BINARY:
            return self._bytes(self._varint(32))
        if kind in (_LIST, _SET):
            return self._list(depth + 1)
        if kind in (_BYTE, _TRUE, _FALSE):  # inside a list a boolean takes a byte
            return self._byte()
        if kind == _DOUBLE:
            return self._bytes(8)
        raise ValueError(f"a value of unknown type {kind}")

    def _list(self, depth: int) -> list[Any]:
        head = self._byte()
        count = head >> 4 if head >> 4 < 15 else self._varint(32)
        # Every element takes a byte or more.
        if count > self._end - self.place or depth > MAX_DEPTH:
            raise ValueError(f"a list claims {count:,} values in {self._end - self.place:,} bytes")
        return [self._value(head & 15, depth) for _ in range(count)]

    def _byte(self) -> int:
        if self.place >= self._end:
            raise ValueError("a struct does not end")
        self.place += 1
        return self._data[self.place - 1]

    def _bytes(self, count: int) -> bytes:
        if count > self._end - self.place:
            raise ValueError(f"a text claims {count:,} bytes, {self._end - self.place:,} are left")
        self.place += count
        return self._data[self.place - count : self.place]

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
