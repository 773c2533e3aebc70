"""Untrusted JSON: the memory of a value before it is parsed, and the values of a list one by one.

In: bytes, or a file. Out: an estimate, or values with their byte offsets. Three bytes of JSON (`[],`) become a hundred
in memory, so the length of a text alone is not a bound.
"""

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

# Bytes of Python objects: a list or dictionary, a number or a reference, a key, half a string (per quote).
GROUP, NUMBER, KEY, QUOTE = 100, 40, 100, 15
# Memory that a row may take, as a multiple of the bytes that it may have.
MEMORY_PER_BYTE = 4
BLOCK_BYTES = 1 << 22
SPACE = b" \t\n\r"
# Bytes first read of a value, and most white space between two values.
PIECE_BYTES, MAX_SPACE_BYTES = 1 << 14, 1 << 20
BOM = codecs.BOM_UTF8


class BadList(ValueError):
    """Not a JSON list, or a list with a value that is too large."""


def is_too_costly(data: bytes, max_bytes: int) -> bool:
    """Whether JSON would take more memory than a row of `max_bytes` may."""
    most = MEMORY_PER_BYTE * max_bytes
    return _cost(*(data.count(sign) for sign in (b"[", b"{", b",", b":", b'"'))) > most and _exact_cost(data) > most


def _cost(lists: int, objects: int, commas: int, colons: int, quotes: int) -> int:
    return GROUP * (lists + objects) + NUMBER * commas + KEY * colons + QUOTE * quotes


def _exact_cost(data: bytes) -> int:
    """The cost without signs inside strings."""
    total, inside, slashes = 0, 0, 0
    for start in range(0, len(data), BLOCK_BYTES):
        signs = np.frombuffer(data, np.uint8)[start : start + BLOCK_BYTES]
        is_quote, slashes = _quotes(signs, slashes)
        parity = np.bitwise_xor.accumulate(is_quote.view(np.uint8)) ^ np.uint8(inside)
        outside, inside = signs[parity == 0], int(parity[-1])
        lists, objects, commas, colons = (int(np.count_nonzero(outside == ord(sign))) for sign in "[{,:")
        total += _cost(lists, objects, commas, colons, int(np.count_nonzero(is_quote)))
    return total


def _quotes(signs: npt.NDArray[np.uint8], slashes: int) -> tuple[npt.NDArray[np.bool_], int]:
    """The quotes of a block that begin or end a string: those after an even number of backslashes."""
    places = np.arange(1, len(signs) + 1)
    others = np.maximum.accumulate(np.where(signs != ord("\\"), places, 0))
    runs = places - others + np.where(others == 0, slashes, 0)
    before = np.concatenate([[slashes], runs[:-1]])
    is_quote: npt.NDArray[np.bool_] = (signs == ord('"')) & (before % 2 == 0)
    return is_quote, int(runs[-1])


def list_values(file: BinaryIO, max_bytes: int) -> Iterator[tuple[int, Any]]:
    """The values of a file with one list, in order, each with its byte offset."""
    place = len(BOM) if file.read(len(BOM)) == BOM else 0
    place = _expect(file, place, b"[") + 1
    sign, place = _next_sign(file, place)
    while sign != b"]":
        value, end = value_at(file, place, max_bytes)
        yield place, value
        sign, place = _next_sign(file, end)
        if sign == b",":
            sign, place = _next_sign(file, place + 1)
            if sign == b"]":
                raise BadList(f"expected a value at byte {place:,}, found ]")
        elif sign != b"]":
            raise BadList(f"expected a comma at byte {place:,}")
    sign, place = _next_sign(file, place + 1)
    if sign:
        raise BadList(f"data after the end of the list, at byte {place:,}")


def _expect(file: BinaryIO, place: int, wanted: bytes) -> int:
    sign, place = _next_sign(file, place)
    if sign != wanted:
        raise BadList(f"expected {wanted.decode()} at byte {place:,}")
    return place


def _next_sign(file: BinaryIO, place: int) -> tuple[bytes, int]:
    """The next byte that is not white space (empty at the end), and its offset."""
    file.seek(place)
    passed = 0
    while passed <= MAX_SPACE_BYTES:
        block = file.read(64 if not passed else 1 << 16)
        rest = block.lstrip(SPACE)
        passed += len(block) - len(rest)
        if rest or not block:
            return rest[:1], place + passed
    raise BadList(f"more than {MAX_SPACE_BYTES:,} bytes of white space at byte {place:,}")


def value_at(file: BinaryIO, place: int, max_bytes: int) -> tuple[Any, int]:
    """The value at an offset, and the offset after it; reads at most twice its bytes."""
    n_bytes = PIECE_BYTES
    while True:
        file.seek(place)
        data = file.read(n_bytes)
        is_whole = len(data) < n_bytes
        if n_bytes > PIECE_BYTES and is_too_costly(data, max_bytes):
            raise BadList(
                f"the value at byte {place:,} would take more than {MEMORY_PER_BYTE * max_bytes:,} bytes of memory"
            )
        text, _ = codecs.utf_8_decode(data, "strict", is_whole)
        try:
            value, end = json.JSONDecoder().raw_decode(text)
        except json.JSONDecodeError as error:
            if is_whole:
                raise BadList(f"{error.msg} at byte {place + len(text[: error.pos].encode()):,}") from None
        except RecursionError:
            raise BadList(f"the value at byte {place:,} is nested too deeply") from None
        else:
            # A number at the end of the data may have more digits.
            if is_whole or end < len(text):
                return value, place + len(text[:end].encode())
        if n_bytes > max_bytes:
            raise BadList(f"the value at byte {place:,} has more than {max_bytes:,} bytes, or is not terminated")
        n_bytes *= 2
