"""Durations as people write them: 90, 30s, 5m, 1h30m, 2d.

In: a setting. Out: seconds.
"""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,3})?[smhd])+")
_PIECE = re.compile(r"([0-9.]+)([smhd])")
FORM = "a duration is a number of seconds, or one with units such as 30s, 5m or 1h30m"


def in_seconds(text: str) -> float:
    """The seconds of a duration."""
    text = text.strip().lower()
    if re.fullmatch(r"[0-9]{1,9}(?:\.[0-9]{1,3})?", text):
        return float(text)
    if not _DURATION.fullmatch(text):
        raise ValueError(FORM)
    return sum(float(number) * UNITS[unit] for number, unit in _PIECE.findall(text))


def _parsed(value: Any) -> Any:
    return in_seconds(value) if isinstance(value, str) else value


Seconds = Annotated[float, BeforeValidator(_parsed), Field(ge=0, le=1e9, allow_inf_nan=False)]
