"""metrics.jsonl: one line of strict JSON for each step and each evaluation.

In: numbers by name. Out: OUT/metrics.jsonl, every float in full precision; one that is not finite is null, and named in
`nonfinite`.

A checkpoint holds length and digest of the lines that belong to it, which are on the disk before it is. A run that is
resumed cuts the file there, so that no step is in it twice; a file that does not match gets a line that says so.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from kdpipe.cache.durable.files import replace_file, translate_os_errors
from kdpipe.schemas.checkpoint import MetricsState

FILE: Final = "metrics.jsonl"
GAP: Final = "metrics_gap"
UNDONE: Final = "undone"
# Numbers, words, or groups of them.
Value = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsGap:
    """Lines that the checkpoint of a `step` counts, and how many of them are still there."""

    step: int
    expected: int
    present: int

    def __str__(self) -> str:
        if self.present == self.expected:
            return f"{FILE} was changed: its lines up to step {self.step:,} are not those that were written"
        return (
            f"{FILE} has {self.present:,} of the {self.expected:,} lines up to step {self.step:,}; the others are "
            f"missing, and a line with {GAP} says so"
        )


@final
class Metrics:
    """The file, open at its end; `begin` is what the checkpoint of a `step` and `place` says of it, `gap` what is not
    so."""

    def __init__(
        self,
        run: Path,
        begin: MetricsState = MetricsState(),  # noqa: B008  # frozen
        step: int = 0,
        place: int = 0,
    ) -> None:
        self._path = run / FILE
        self._n_bytes, self._n_lines, self._digest = 0, 0, hashlib.sha256()
        with translate_os_errors("metrics could not be written", self._path):
            self.gap = _restore(run, begin, step, place)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
            self._count(self._path.read_bytes())
        if self.gap is not None:
            lines = {"expected_lines": self.gap.expected, "present_lines": self.gap.present}
            self.write({"step": step, GAP: lines})

    def write(self, line: Mapping[str, Value]) -> None:
        """Add a line; it is with the system when this returns."""
        odd = dict(_odd("", line))
        self._append(_encoded(_finite(line) | ({"nonfinite": odd} if odd else {})))

    def settled(self) -> MetricsState:
        """How far the file has come, once all of it is on the disk: what a checkpoint holds."""
        with translate_os_errors("metrics could not be written", self._path):
            os.fsync(self._file)
        return MetricsState(bytes=self._n_bytes, lines=self._n_lines, sha256=self._digest.hexdigest())

    def undo(self, step: int) -> None:
        """Mark the steps and evaluations behind a step as undone; no checkpoint of them may be there any more."""
        with translate_os_errors("metrics could not be written", self._path):
            lines = self._path.read_bytes().splitlines(keepends=True)
            marked = [_marked(line, step) for line in lines]
            same = next((n for n, line in enumerate(lines) if line != marked[n]), len(lines))
            os.ftruncate(self._file, sum(map(len, lines[:same])))
        self._count(b"".join(lines[:same]))
        self._append(b"".join(marked[same:]))

    def close(self) -> None:
        """Nothing more will be written."""
        with translate_os_errors("metrics could not be written", self._path):
            os.close(self._file)

    def _append(self, data: bytes) -> None:
        left = data
        with translate_os_errors("metrics could not be written", self._path):
            while left:
                left = left[os.write(self._file, left) :]
        self._n_bytes, self._n_lines = self._n_bytes + len(data), self._n_lines + data.count(b"\n")
        self._digest.update(data)

    def _count(self, data: bytes) -> None:
        """Take what is in the file as what was written."""
        self._n_bytes, self._n_lines, self._digest = len(data), data.count(b"\n"), hashlib.sha256(data)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run; a last one that was cut off in the middle is left out."""
    data = (run / FILE).read_bytes()
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def _restore(run: Path, begin: MetricsState, step: int, place: int) -> MetricsGap | None:
    """Leave in the file what belongs to a checkpoint, and nothing else; what is missing of that."""
    path = run / FILE
    data = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(data[: begin.bytes]).hexdigest() == begin.sha256:
        if len(data) > begin.bytes:
            os.truncate(path, begin.bytes)
        return None
    lines = _up_to(data[: data.rfind(b"\n") + 1].splitlines(keepends=True), step, place)
    # A run that was killed once it had said what is missing says it again.
    while lines and GAP in json.loads(lines[-1]):
        lines.pop()
    lines = lines[: begin.lines]
    replace_file(run, path, b"".join(lines))
    return MetricsGap(step=step, expected=begin.lines, present=len(lines))


def _up_to(lines: list[bytes], step: int, place: int) -> list[bytes]:
    """The whole lines that were written before the checkpoint of a step and place.

    Steps that are skipped right after the checkpoint have its number, and undone lines are kept whatever their number:
    only the place shows that they are later. A line without one has that of the line before it.
    """
    kept, reached = [], 0
    for line in lines:
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if not isinstance(values, dict) or not isinstance(values.get("step"), int):
            continue
        if isinstance(values.get("place"), int):
            reached = values["place"]
        if reached <= place and (values["step"] <= step or values.get(UNDONE)):
            kept.append(line)
    return kept


def _marked(line: bytes, step: int) -> bytes:
    """A line, marked if it is a step that was done or an evaluation, behind a step."""
    values = json.loads(line)
    is_step = values.get("verdict") == "accept"
    if values["step"] <= step or not (is_step or "evaluation" in values) or UNDONE in values:
        return line
    return _encoded({**values, **({"verdict": UNDONE} if is_step else {}), UNDONE: True})


def _encoded(line: Mapping[str, Value]) -> bytes:
    return json.dumps(line, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


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
