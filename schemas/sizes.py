"""Sizes as people write them: 20GB, 500 MB, 1.5 TiB, or a number of bytes.

In: a setting. Out: bytes.
"""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

UNITS = {"": 1, "B": 1}
UNITS |= {f"{letter}B": 1000**power for power, letter in enumerate("kMGT", start=1)}
UNITS |= {f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", start=1)}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) *([A-Za-z]{0,3})")
_KNOWN = {unit.lower(): factor for unit, factor in UNITS.items()}


def _in_bytes(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None or match[2].lower() not in _KNOWN:
        raise ValueError("a size is a number of bytes, or one with a unit such as 500MB, 20GB or 1.5TiB")
    return round(float(match[1]) * _KNOWN[match[2].lower()])


Size = Annotated[int, BeforeValidator(_in_bytes), Field(ge=1, le=1 << 60)]
