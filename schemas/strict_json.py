"""Strict JSON: one way to write it, and no tolerance when reading.

In: bytes of manifest.json, part.json or a settings file. Out: plain Python values, or a `FileDamaged` with the reason.
Duplicate keys, NaN, deep nesting and overlong input are refused; the sha256 of `canonical` JSON is an identity.
"""

import hashlib
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from kdpipe.schemas.errors import FileDamaged

MAX_DEPTH = 32
MAX_KEYS = 4096
# The manifest of a million parts takes 11 MB; as Python objects the values take twenty times as much memory.
MAX_BYTES = 16 << 20


def canonical(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8, no NaN, a final newline."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def sha256_hex(data: bytes | memoryview) -> str:
    """The sha256 of bytes as lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """The sha256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse(data: bytes, what: str, max_bytes: int = MAX_BYTES, damaged: type[FileDamaged] = FileDamaged) -> Any:
    """Parse strict JSON; errors are of class `damaged` and name `what`."""
    if len(data) > max_bytes:
        raise damaged(f"{what} has {len(data):,} bytes, at most {max_bytes:,} are allowed")
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
        )
        if b"\\u" in data:
            canonical(value)  # refuses unpaired surrogates
    except (ValueError, RecursionError) as error:
        raise damaged(f"{what} is not strict JSON: {error or type(error).__name__}") from None
    if _depth(value) > MAX_DEPTH:
        raise damaged(f"{what} is nested deeper than {MAX_DEPTH} levels")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        raise ValueError(f"an object has {len(pairs):,} keys")
    result = dict(pairs)
    if len(result) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"duplicate key {counts.most_common(1)[0][0][:100]!r}")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number[:40]} is too large for a number")
    return value


def _depth(value: Any) -> int:
    """Levels of nesting, counted breadth-first so that no input exhausts the stack."""
    level, depth = [value], 0
    while level:
        depth += 1
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        if depth > MAX_DEPTH:
            break
        level = below
    return depth
