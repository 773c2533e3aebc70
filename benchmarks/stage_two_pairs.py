"""Timed pairs of steps in a file, to resume a benchmark and to add pairs from several processes."""

import json
import os
from pathlib import Path
from typing import Any


class Pairs:
    """A JSON-lines file: the setup of each process, its pairs, and finally the mean losses of both sides."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, **line: Any) -> None:
        """Append a line atomically."""
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, (json.dumps(line) + "\n").encode())
        finally:
            os.close(handle)

    def read(self) -> dict[str, Any]:
        """The setup, `rounds` and `mean_loss`; pairs of another setup in the file end the benchmark."""
        lines = [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []
        compared = [line["compared"] for line in lines if "compared" in line]
        if any(one != compared[0] for one in compared):
            raise SystemExit(f"{self.path} has pairs of other versions or sizes: remove it, or choose another --work")
        losses = [line["mean_loss"] for line in lines if "mean_loss" in line]
        return {
            "rounds": [line["pair"] for line in lines if "pair" in line],
            "mean_loss": losses[-1] if losses else None,
            **(compared[0] if compared else {}),
        }
