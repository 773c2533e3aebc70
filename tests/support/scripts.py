"""Scripts of benchmarks/ run in a forked child: their imports are done, and no student is read again in a new process.

In: a script's name and its words. Out: its exit code and what it printed. A script computes on one thread, since
threads of OpenMP are not forked; what it measures in processes of its own it starts as ever.
"""

import os
import runpy
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest

from kdpipe.pipeline.training import finalize
from support.children import in_child
from support.source import ROOT

BENCHMARKS = ROOT / "benchmarks"


@dataclass(frozen=True, slots=True)
class Printed:
    """How a script ended, and what it printed."""

    code: int
    out: str
    err: str


def run_script(name: str, *words: str) -> Printed:
    """Run a script of benchmarks/ to its end; an exception of its own fails the test."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        ended = in_child(lambda: str(_run(name, words, out, err)))
        printed = err.read_text(encoding="utf-8")
        if ended.code:
            pytest.fail(f"{name}.py ended with {ended.code}:\n{ended.output}\n{printed[-3000:]}")
        return Printed(code=int(ended.output), out=out.read_text(encoding="utf-8"), err=printed)


def check_script(name: str, *words: str) -> Printed:
    """The same of a script that succeeds."""
    printed = run_script(name, *words)
    assert printed.code == 0, printed.err[-3000:]
    return printed


def _run(name: str, words: tuple[str, ...], out: Path, err: Path) -> int:
    """In the child: its own streams, words and path, as a new process has them."""
    sys.stdout, sys.stderr = (path.open("w", encoding="utf-8") for path in (out, err))
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        os.dup2(stream.fileno(), number)
    warnings.resetwarnings()
    script = BENCHMARKS / f"{name}.py"
    sys.argv = [str(script), *words]
    sys.path.insert(0, str(BENCHMARKS))
    # Tests of the command line and of stage two read students again; it takes seconds of every run.
    finalize.check_reload = lambda *_, **__: 0.0
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as ended:
        if isinstance(ended.code, str):
            sys.stderr.write(f"{ended.code}\n")
            return 1
        return ended.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0
