"""The contract of experiment trackers, and a tracker that records its calls.

In: a name in `TRACKERS`, and for a real library a program that reads back what it wrote. Out: assertions that every
tracker passes: in the run's folder, without network and output, and one run however often it is resumed.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from kdpipe.pipeline.training.trackers import TrackedRun

PRELUDE = """
import json
import sys
from pathlib import Path

def no_network(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        address = arguments[1] if event != "socket.getaddrinfo" else arguments[0]
        host = address[0] if isinstance(address, tuple) else address
        if host not in ("127.0.0.1", "localhost", "::1") and not str(host).startswith("/"):
            raise AssertionError(f"{event} {host}")

sys.addaudithook(no_network)
from kdpipe.pipeline.training.trackers import TrackedRun, Trackers
from kdpipe.schemas.progress import SilentProgress

class Strict(SilentProgress):
    # Prints messages to stderr, and refuses warnings.
    def message(self, text, style="plain"):
        print(text, file=sys.stderr)

    def warning(self, text):
        raise AssertionError(text)

name, folder = sys.argv[1], Path(sys.argv[2])
config = {"losses.mode": "hybrid", "optimizer.lr": "0.0001", "run.phases": "x" * 7000}
"""
WRITE = (
    PRELUDE
    + """
for begin, end in ((0, 5), (3, 7)):
    trackers = Trackers([name], TrackedRun(name="a run", folder=folder, config=config, step=begin), Strict())
    for step in range(begin + 1, end + 1):
        trackers.write({"step": step, "loss": begin + 1 / step, "terms": {"ce": {"raw": 2.0}}, "bad": float("nan")})
    trackers.finish()
"""
)
# Steps that a tracker shows of a run of 5 steps, resumed at 3 and trained to 7: `all` keeps the steps of both.
FIRST, SECOND = [(step, 1 / step) for step in range(1, 6)], [(step, 3 + 1 / step) for step in range(4, 8)]


def child(program: str, name: str, folder: Path, home: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, without the variables of any tracker."""
    prefixes = ("WANDB_", "MLFLOW_", "TRACKIO_", "HF_", "XDG_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}
    command = [sys.executable, "-W", "error", "-c", program, name, str(folder)]
    return subprocess.run(
        command, env=environment | {"HOME": str(home)}, cwd=home, capture_output=True, text=True, check=False
    )


def check_tracker(name: str, read: str, work: Path, *, hides_undone: bool = False) -> None:
    """Write a resumed run with a tracker, and read it back with `read`, which sets `points` to (step, loss) pairs."""
    folder, home = work / "run", work / "home"
    folder.mkdir()
    home.mkdir()
    written = child(WRITE, name, folder, home)
    assert written.returncode == 0, written.stderr
    assert written.stdout == ""
    lines = [line for line in written.stderr.splitlines() if line.startswith(f"{name} ")]
    assert len(lines) == 2, written.stderr
    for line in lines:
        # One line for each start: where the run is, and the library's command that opens or uploads it.
        assert str(folder) in line and re.search(rf"\b(view|upload): (\S+=\S+ )?{name} ", line)
    assert [path for path in home.rglob("*") if path.is_file()] == []
    answer = child(f"{PRELUDE}{read}\nprint(json.dumps(points))\n", name, folder, home)
    assert answer.returncode == 0, answer.stderr
    points = sorted(json.loads(answer.stdout.splitlines()[-1]))
    expected = sorted((FIRST[:3] if hides_undone else FIRST) + SECOND)
    assert [step for step, _ in points] == [step for step, _ in expected]
    assert [value for _, value in points] == pytest.approx([value for _, value in expected])


class RecordingTracker:
    """Records its calls; `fails` makes it raise."""

    last: ClassVar["RecordingTracker | None"] = None

    def __init__(self, run: TrackedRun) -> None:
        self.run, self.logged, self.n_finished, self.fails = run, list[tuple[int, dict[str, float]]](), 0, False
        RecordingTracker.last = self

    @property
    def location(self) -> str:
        return f"view: json {self.run.folder}"

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        if self.fails:
            raise ConnectionError("the server is gone\nand more")
        self.logged.append((step, dict(numbers)))

    def finish(self) -> None:
        self.n_finished += 1


class BrokenTracker(RecordingTracker):
    """Fails when it is opened."""

    def __init__(self, run: TrackedRun) -> None:
        raise OSError("no space left")
