"""Random damage that follows from a number: bytes, integers, stretches and JSON values of any file of a cache.

In: a cache's folder and a seed. Out: the folder with one file changed, and what was done, in words.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdpipe.cache import layout
from kdpipe.cache.parts.index import sealed
from kdpipe.schemas.strict_json import canonical
from support.damage import reseal, tail_bytes
from support.tiny import files_of

INTEGERS = (0, 1, -1, 2, 127, 128, 255, 1 << 15, (1 << 16) - 1, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 32, 1 << 40)
HUGE = ((1 << 63) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - 2)
VALUES: tuple[Any, ...] = (
    *INTEGERS, *HUGE, -1.5, 1e308, 5e-324, True, None, "", "x" * 5000, "../..", [], {}, [[]], {"kind": "none"}, [0, 0],
)  # fmt: skip
Words = str
Change = Callable[[bytes, random.Random], bytes]


def mutate(path: Path, seed: int) -> Words:
    """Change one file in one to three ways; every second time all digests are made to hold again."""
    rng = random.Random(seed)
    name = rng.choice(files_of(path))
    file = path / name
    messages = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        change = set_value if name.endswith(".json") and rng.random() < 0.7 else rng.choice(CHANGES)
        messages.append(change.__name__.strip("_"))
        data = file.read_bytes()
        file.write_bytes(change(data, rng) if data else rng.randbytes(rng.randrange(1, 64)))
    if seed % 2:
        _seal_again(path, name)
    return f"seed {seed}: {name}: {', '.join(messages)}{', sealed again' if seed % 2 else ''}"


def _seal_again(path: Path, name: str) -> None:
    if name == layout.INDEX:
        (path / name).write_bytes(sealed((path / name).read_bytes()))
    else:
        reseal(path)


def _flip_bits(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _set_bytes(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    start = rng.randrange(len(data))
    length = min(rng.choice((1, 2, 4, 8, 64)), len(data) - start)
    changed[start : start + length] = rng.choice((bytes(length), b"\xff" * length, rng.randbytes(length)))
    return bytes(changed)


def _set_integer(data: bytes, rng: random.Random) -> bytes:
    width = rng.choice((1, 2, 4, 8))
    number = rng.choice((*INTEGERS, *HUGE, len(data), rng.randrange(1 << 16))) % (1 << 8 * width)
    start = rng.randrange(max(1, len(data) // width)) * width
    return data[:start] + number.to_bytes(width, "little") + data[start + width :]


def _set_integer_near_the_end(data: bytes, rng: random.Random) -> bytes:
    """Where footers and indexes lie."""
    tail = min(len(data), rng.choice((64, 512, tail_bytes(4))))
    return data[:-tail] + _set_integer(data[-tail:], rng)


def _splice(data: bytes, rng: random.Random) -> bytes:
    start, length, to = rng.randrange(len(data)), rng.randrange(1, 200), rng.randrange(len(data))
    piece = data[start : start + length]
    return data[:to] + piece + data[to + (len(piece) if rng.random() < 0.7 else 0) :]


def _cut(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] if rng.random() < 0.5 else data[:start] + data[start + rng.randrange(1, 64) :]


def _extend(data: bytes, rng: random.Random) -> bytes:
    return data + rng.choice((bytes(8), data[-64:], rng.randbytes(32)))


CHANGES: tuple[Change, ...] = (
    _flip_bits, _flip_bits, _set_bytes, _set_integer, _set_integer, _set_integer_near_the_end, _splice, _cut, _extend,
)  # fmt: skip


def set_value(data: bytes, rng: random.Random) -> bytes:
    """Another value somewhere in a record: a strange one, one from elsewhere in it, or none at all."""
    try:
        record = json.loads(data)
        places = list(_places(record))
        holder, key = rng.choice(places)
        other, other_key = rng.choice(places)
        chance = rng.random()
        if chance < 0.15:
            del holder[key]
        elif chance < 0.3 and isinstance(holder, dict):
            holder[f"{key}x"] = holder[key]
        elif chance < 0.5 and isinstance(holder[key], int):
            holder[key] += rng.choice((-1, 1, 64, 1 << 20))
        else:
            holder[key] = rng.choice(VALUES) if chance < 0.85 else json.loads(json.dumps(other[other_key]))
        return canonical(record)
    except (ValueError, TypeError, IndexError, RecursionError):
        return _flip_bits(data, rng)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every place of a value that can be set."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    found = [(value, key) for key in keys]
    for key in keys:
        found += _places(value[key])
    return found
