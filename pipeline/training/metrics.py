"""metrics.jsonl: one line of strict JSON for each step and each evaluation.

In: numbers by name. Out: OUT/metrics.jsonl in full precision; a float that is not finite is null, and named in
`nonfinite`. A checkpoint holds length and digest of its lines, which are on disk before it. A resumed run cuts the file
there, so that no step is in it twice; a file that does not match gets a line that records the gap.
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
# Numbers, strings, or nested mappings of them.
Value = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsGap:
    """The lines that the checkpoint of a `step` counts, and how many of them are present."""

    step: int
    expected: int
    present: int

    def __str__(self) -> str:
        if self.present == self.expected:
            return f"{FILE} was modified: its lines up to step {self.step:,} differ from the checkpoint's digest"
        return (
            f"{FILE} has {self.present:,} of the {self.expected:,} lines up to step {self.step:,}; a line with {GAP} "
            "records the gap"
        )


@final
class Metrics:
    """The open file; `begin` is its extent in the checkpoint of a `step` and `place`, `gap` what is missing of that."""

    def __init__(
        self,
        run: Path,
        begin: MetricsState = MetricsState(),  # noqa: B008  # frozen
        step: int = 0,
        place: int = 0,
    ) -> None:
        self._path = run / FILE
        self._n_bytes, self._n_lines, self._digest = 0, 0, hashlib.sha256()
        with translate_os_errors("could not write metrics", self._path):
            self.gap = _restore(run, begin, step, place)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
            self._count(self._path.read_bytes())
        if self.gap is not None:
            lines = {"expected_lines": self.gap.expected, "present_lines": self.gap.present}
            self.write({"step": step, GAP: lines})

    def write(self, line: Mapping[str, Value]) -> None:
        """Append a line; the operating system has it when this returns."""
        nonfinite = dict(_nonfinite("", line))
        self._append(_encoded(_finite(line) | ({"nonfinite": nonfinite} if nonfinite else {})))

    def sync(self) -> MetricsState:
        """Flush the file to disk; its extent, for a checkpoint."""
        with translate_os_errors("could not write metrics", self._path):
            os.fsync(self._file)
        return MetricsState(bytes=self._n_bytes, lines=self._n_lines, sha256=self._digest.hexdigest())

    def undo(self, step: int) -> None:
        """Mark later steps and evaluations as undone; their checkpoints must have been removed."""
        with translate_os_errors("could not write metrics", self._path):
            lines = self._path.read_bytes().splitlines(keepends=True)
            marked = [_marked(line, step) for line in lines]
            same = next((n for n, line in enumerate(lines) if line != marked[n]), len(lines))
            os.ftruncate(self._file, sum(map(len, lines[:same])))
        self._count(b"".join(lines[:same]))
        self._append(b"".join(marked[same:]))

    def close(self) -> None:
        with translate_os_errors("could not write metrics", self._path):
            os.close(self._file)

    def _append(self, data: bytes) -> None:
        left = data
        with translate_os_errors("could not write metrics", self._path):
            while left:
                left = left[os.write(self._file, left) :]
        self._n_bytes, self._n_lines = self._n_bytes + len(data), self._n_lines + data.count(b"\n")
        self._digest.update(data)

    def _count(self, data: bytes) -> None:
        """Count the content of the file."""
        self._n_bytes, self._n_lines, self._digest = len(data), data.count(b"\n"), hashlib.sha256(data)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run, without an incomplete last one."""
    data = (run / FILE).read_bytes()
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def _restore(run: Path, begin: MetricsState, step: int, place: int) -> MetricsGap | None:
    """Cut the file to the lines of a checkpoint; what is missing of them."""
    path = run / FILE
    data = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(data[: begin.bytes]).hexdigest() == begin.sha256:
        if len(data) > begin.bytes:
            os.truncate(path, begin.bytes)
        return None
    lines = _lines_before(data[: data.rfind(b"\n") + 1].splitlines(keepends=True), step, place)
    # A gap line of a run that was killed right after it is written again.
    while lines and GAP in json.loads(lines[-1]):
        lines.pop()
    lines = lines[: begin.lines]
    replace_file(run, path, b"".join(lines))
    return MetricsGap(step=step, expected=begin.lines, present=len(lines))


def _lines_before(lines: list[bytes], step: int, place: int) -> list[bytes]:
    """The complete lines from before the checkpoint of a step and place.

    Steps skipped right after the checkpoint have its number, and undone lines any number: only their place shows that
    they are later. A line without a place has that of the line before it.
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
    """A line, marked as undone if it is a later accepted step or evaluation."""
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


def _nonfinite(name: str, value: Value) -> Iterator[tuple[str, str]]:
    """Numbers that are not finite, by dotted name."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _nonfinite(f"{name}.{key}" if name else key, inner)
    elif isinstance(value, float) and not math.isfinite(value):
        yield name, str(value)
