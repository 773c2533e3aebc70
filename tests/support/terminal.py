"""A terminal for a program to write its progress on.

In: a program. Out: what it wrote to stdout and to the terminal, and its exit code.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def on_a_terminal(program: str, folder: Path, term: str = "xterm", columns: int = 100) -> tuple[str, str, int]:
    """What a program writes when its stderr is a terminal: stdout, stderr, exit code."""
    pty = pytest.importorskip("pty", reason="a terminal is made the POSIX way")
    script = folder / "run.py"
    script.write_text(program, encoding="utf-8")
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": term, "COLUMNS": str(columns), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment) as process:
        os.close(theirs)
        messages = b""
        try:
            while piece := os.read(ours, 4096):
                messages += piece
        except OSError:  # Linux ends a terminal without an open descriptor with EIO
            pass
        assert process.stdout is not None
        out = process.stdout.read()
    os.close(ours)
    return out.decode(), messages.decode(), process.returncode
