"""A terminal for a program to write its progress on.

In: a program. Out: what it wrote to stdout and to the terminal, its exit code, and the lines left on the screen.
"""

import os
import re
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


def screen(written: str) -> list[str]:
    """The lines on the screen after a program wrote to it, with graphic renditions; lines are not wrapped."""
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[[0-9;?]*[a-zA-Z]|[\r\n]|[^\x1b\r\n]+", written):
        if token == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif token == "\r":
            column = 0
        elif (up := re.fullmatch(r"\x1b\[(\d*)A", token)) is not None:
            row -= int(up[1] or 1)
        elif token == "\x1b[2K":
            lines[row] = ""
        elif not re.fullmatch(r"\x1b\[(\?.*|[^m]*[A-Zl-n]?)", token) or token.endswith("m"):
            lines[row] = lines[row][:column].ljust(column) + token + lines[row][column + len(token) :]
            column += len(token)
    return lines
