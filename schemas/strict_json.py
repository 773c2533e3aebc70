"""JSON that is read strictly and written in one way only.

In: bytes of manifest.json, part.json or a person's file. Out: plain Python values, or a `ConfigError` that says where.
Duplicate keys, NaN, deep nesting and over-long input are refused; `canonical` is the one spelling whose sha256 is an
identity.
"""

import hashlib
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from kdpipe.schemas.errors import CacheDamaged

MAX_DEPTH = 32
MAX_KEYS = 4096
# The manifest of a million parts takes 11 MB; whatever is allowed here is held as Python objects twenty times as large.
MAX_BYTES = 16 << 20


def canonical(value: Any) -> bytes:
    """The canonical spelling: sorted keys, no spaces, UTF-8, no NaN, a final newline."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def sha256_hex(data: bytes | memoryview) -> str:
    """The sha256 of some bytes, as lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """The sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse(data: bytes, what: str, max_bytes: int = MAX_BYTES) -> Any:
    """Parse strict JSON, naming `what` in every refusal."""
    if len(data) > max_bytes:
        raise CacheDamaged(f"{what} holds {len(data):,} bytes, at most {max_bytes:,} are allowed")
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
        )
        if b"\\u" in data:
            canonical(value)  # refuses escapes that are half a character
    except (ValueError, RecursionError) as error:
        raise CacheDamaged(f"{what} is not strict JSON: {error or type(error).__name__}") from None
    if _depth(value) > MAX_DEPTH:
        raise CacheDamaged(f"{what} is nested deeper than {MAX_DEPTH} levels")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        raise ValueError(f"an object has {len(pairs):,} keys")
    result = dict(pairs)
    if len(result) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"the key {counts.most_common(1)[0][0][:100]!r} stands twice in one object")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number[:40]} is too large for a number")
    return value


def _depth(value: Any) -> int:
    """Levels of nesting, counted breadth first so that no input can exhaust the stack."""
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
