"""metrics.jsonl: one line of strict JSON a step, and never a line of steps that were undone.

In: numbers by name. Out: OUT/metrics.jsonl, every float in full precision; one that is not finite is null, and named in
`nonfinite`. Before it: `book.py` gathers the numbers. After it: `compare`, `report`, and whoever reads along.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, final

from kdpipe.cache.files import explained

FILE: Final = "metrics.jsonl"
# Numbers, words, or groups of them.
Value = Any


@final
class Metrics:
    """The file, open at its end; `begin` is its length when the checkpoint was made that the run goes on from."""

    def __init__(self, run: Path, begin: int = 0) -> None:
        self._path = run / FILE
        with explained("metrics could not be written", self._path):
            self._file = self._path.open("ab", buffering=0)
            self._file.truncate(_line_end(self._path, begin))

    def write(self, line: Mapping[str, Value]) -> None:
        """Add a line; it is with the system when this returns."""
        odd = dict(_odd("", line))
        whole = _finite(line) | ({"nonfinite": odd} if odd else {})
        data = json.dumps(whole, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        with explained("metrics could not be written", self._path):
            while data:
                data = data[self._file.write(data) :]

    def settled(self) -> int:
        """The length of the file, once all of it is on the disk: what a checkpoint notes."""
        with explained("metrics could not be written", self._path):
            os.fsync(self._file.fileno())
            return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Nothing more will be written."""
        self._file.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run; a last one that was cut off in the middle is left out."""
    data = (run / FILE).read_bytes()
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def _line_end(path: Path, begin: int) -> int:
    """Where to go on: at `begin`, or behind the last whole line of a file that somebody has shortened."""
    if path.stat().st_size >= begin:
        return begin
    return path.read_bytes().rfind(b"\n") + 1


def _finite(value: Value) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _odd(name: str, value: Value) -> Iterator[tuple[str, str]]:
    """The numbers that are not finite, by dotted name."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _odd(f"{name}.{key}" if name else key, inner)
    elif isinstance(value, float) and not math.isfinite(value):
        yield name, str(value)
