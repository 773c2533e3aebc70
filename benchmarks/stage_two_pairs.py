"""Timed pairs of steps in a file, so that a benchmark that was stopped goes on, and several processes may add to it.

In: what is compared, a pair at a time, mean losses at the end of a process. Out: all of it at once.
"""

import json
import os
from pathlib import Path
from typing import Any


class Pairs:
    """A file of lines: what a process compares, its pairs, and at its end the mean losses of both sides."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, **line: Any) -> None:
        """One more line, whole or not at all beside other processes."""
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, (json.dumps(line) + "\n").encode())
        finally:
            os.close(handle)

    def read(self) -> dict[str, Any]:
        """What is compared, `rounds` and `mean_loss`; pairs of other things in the same file end the benchmark."""
        lines = [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []
        compared = [line["compared"] for line in lines if "compared" in line]
        if any(one != compared[0] for one in compared):
            raise SystemExit(f"{self.path} has pairs of other versions or sizes: remove it, or name another --work")
        losses = [line["mean_loss"] for line in lines if "mean_loss" in line]
        return {
            "rounds": [line["pair"] for line in lines if "pair" in line],
            "mean_loss": losses[-1] if losses else None,
            **(compared[0] if compared else {}),
        }
