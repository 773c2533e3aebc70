"""Signals: the first stops cleanly with 75, the second at once with 130, an ignored one stays ignored."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are sent the POSIX way")

WAIT = """
import signal, sys, time
from kdpipe.cli import console, main
PREPARE
@main.app.command()
def wait(stubborn: bool = False) -> None:
    try:
        console.answer("ready")
        sys.stdout.flush()
        time.sleep(60)
    finally:
        console.answer("cleaning up")
        sys.stdout.flush()
        time.sleep(60 if stubborn else 0)

sys.exit(main.main())
"""


@contextmanager
def waiting(tmp_path: Path, *words: str, prepare: str = "") -> Iterator[subprocess.Popen[str]]:
    """A kdpipe process that has said it is ready and sleeps."""
    script = tmp_path / "wait.py"
    script.write_text(WAIT.replace("PREPARE", prepare), encoding="utf-8")
    command = [sys.executable, str(script), "wait", *words]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_cleanly(number: signal.Signals, tmp_path: Path) -> None:
    with waiting(tmp_path) as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out) == (75, "cleaning up\n")
        assert err == "error: interrupted\nhint: run the same command again to go on\n"


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_stops_at_once(first: signal.Signals, tmp_path: Path) -> None:
    with waiting(tmp_path, "--stubborn") as process:
        assert process.stdout is not None
        process.send_signal(first)
        assert process.stdout.readline() == "cleaning up\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130


def test_a_signal_that_the_parent_ignores_stays_ignored(tmp_path: Path) -> None:
    prepare = "signal.signal(signal.SIGINT, signal.SIG_IGN)"
    with waiting(tmp_path, prepare=prepare) as process:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        assert process.returncode == 75
