"""Two records side by side: which keys differ, in words a person can act on.

In: two JSON values. Out: lines such as `targets.keep.tau: 0.04 there, 0.1 asked`.
Before it: `records.py`. After it: `cache/writer.py` refuses a folder that holds another cache with these lines.
"""

from typing import Any


def differing_keys(there: Any, asked: Any, place: str = "") -> list[str]:
    """Every leaf in which two values differ."""
    if isinstance(there, dict) and isinstance(asked, dict):
        names = sorted(there.keys() | asked.keys())
        return [
            line
            for name in names
            for line in differing_keys(there.get(name), asked.get(name), f"{place}.{name}".lstrip("."))
        ]
    if isinstance(there, list) and isinstance(asked, list) and len(there) == len(asked):
        pairs = enumerate(zip(there, asked, strict=True))
        return [line for n, (a, b) in pairs for line in differing_keys(a, b, f"{place}[{n}]")]
    return [] if there == asked else [f"{place}: {_short(there)} there, {_short(asked)} asked"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
