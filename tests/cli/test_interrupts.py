"""Signals at any moment: the first stops cleanly with 75, the second at once with 130, an ignored one stays ignored."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.children import in_child

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are sent the POSIX way")

# A program that has the signal handling of a terminal, and can do something before kdpipe is imported.
BEGIN = """
import importlib.abc, os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
PREPARE
from kdpipe.cli import main
"""
WAIT = (
    BEGIN
    + """
from kdpipe.cli import commands, console
@commands.app.command()
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
)
# Signals while a module is looked for, which is while the module is imported that needs it.
IN_AN_IMPORT = """
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "MODULE":
            sys.meta_path.remove(self)
            for _ in range(TIMES):
                os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""
# Signals in a finalizer, where Python drops every exception.
IN_A_FINALIZER = """
from kdpipe.cli import commands, console
class Dropped:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
@commands.app.command()
def drop() -> None:
    dropped = Dropped()
    del dropped
    time.sleep(60)
sys.argv[1:] = ["drop"]
sys.exit(main.main())
"""
# Python gives up its handlers before it takes modules apart.
WHILE_PYTHON_ENDS = """
class Last:
    def __del__(self, kill=os.kill, me=os.getpid(), number=signal.SIGINT, sleep=time.sleep):
        for _ in range(3):
            kill(me, number)
            sleep(0.01)
last = Last()
sys.exit(main.main())
"""
STOPPED = "stopped: interrupted\nhint: re-run the same command to resume\n"


def ended(program: str, *words: str) -> tuple[int, str, str]:
    """How a program ends: exit code, stdout, stderr."""
    command = [sys.executable, "-c", program, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    return done.returncode, done.stdout, done.stderr


@contextmanager
def waiting(tmp_path: Path, *words: str, prepare: str = "") -> Iterator["subprocess.Popen[str]"]:
    """A kdpipe process that has reported it is ready and sleeps."""
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_stops_cleanly(number: signal.Signals, tmp_path: Path) -> None:
    with waiting(tmp_path) as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=900)
        assert (process.returncode, out) == (75, "cleaning up\n")
        assert err == STOPPED


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_second_signal_stops_at_once(first: signal.Signals, tmp_path: Path) -> None:
    with waiting(tmp_path, "--stubborn") as process:
        assert process.stdout is not None
        process.send_signal(first)
        assert process.stdout.readline() == "cleaning up\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=900) == 130


@pytest.mark.slow
@pytest.mark.parametrize("ignored", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_the_parent_ignores_stays_ignored(ignored: signal.Signals, tmp_path: Path) -> None:
    prepare = f"signal.signal({int(ignored)}, signal.SIG_IGN)"
    with waiting(tmp_path, prepare=prepare) as process:
        process.send_signal(ignored)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=900)
        assert process.returncode == 75


@pytest.mark.parametrize(
    ("module", "times", "end"),
    [
        ("typer", 1, (75, "", STOPPED)),
        ("typer", 5, (130, "", "")),
        ("kdpipe.cli.streams", 1, (75, "", STOPPED)),
        ("kdpipe.cli.console", 2, (130, "", "")),
    ],
)
def test_signals_during_an_import_are_answered_without_a_traceback(
    module: str, times: int, end: tuple[int, str, str]
) -> None:
    prepare = IN_AN_IMPORT.replace("MODULE", module).replace("TIMES", str(times))
    assert ended(BEGIN.replace("PREPARE", prepare) + "sys.exit(main.main())", "--version") == end


@pytest.mark.slow
def test_an_interrupt_that_python_drops_is_raised_again() -> None:
    assert ended(BEGIN.replace("PREPARE", "") + IN_A_FINALIZER) == (75, "", STOPPED)


def test_signals_that_come_when_the_exit_code_is_known_change_nothing() -> None:
    code, out, err = ended(BEGIN.replace("PREPARE", "") + WHILE_PYTHON_ENDS, "--version")
    assert (code, err) == (0, "")
    assert out.startswith("kdpipe ")


def test_another_exception_that_python_drops_is_shown() -> None:
    program = IN_A_FINALIZER.replace("os.kill(os.getpid(), signal.SIGINT)", "raise ValueError(7)")
    code, _, err = ended(BEGIN.replace("PREPARE", "") + program.replace("sleep(60)", "sleep(0)"))
    assert code == 0
    assert "Exception ignored in" in err and "ValueError: 7" in err


@pytest.mark.slow
@pytest.mark.parametrize("n_rounds", [5, pytest.param(300, marks=pytest.mark.soak)])
def test_two_signals_never_end_it_by_a_signal(n_rounds: int, tmp_path: Path) -> None:
    """However short the time between them; one that arrives with the other is the same to the system."""
    slow_end = "class Last:\n    def __del__(self, sleep=time.sleep): sleep(0.05)\nlast = Last()"
    for n in range(n_rounds):
        with waiting(tmp_path, prepare=slow_end) as process:
            process.send_signal(signal.SIGINT)
            time.sleep(random.Random(n).uniform(0, 0.1))  # any time will do
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=900)
        assert process.returncode in (75, 130), (n, err)
        assert err in ("", STOPPED), n


def stopped_at(n_call: int, log: Path) -> str:
    """Run `kdpipe --version` in this process, which gets a signal at its n-th call of a function."""
    from kdpipe.cli import interrupts, main

    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        if event == "call" and signal.getsignal(signal.SIGINT) is interrupts._stop:
            calls += 1
            if calls == n_call:
                sys.setprofile(None)
                os.kill(os.getpid(), signal.SIGINT)

    sys.argv[1:] = ["--version"]
    with log.open("a") as file:
        sys.stdout = sys.stderr = file
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.setprofile(count)
        try:
            code = main.main()
        finally:
            sys.setprofile(None)
    return f"{code} {calls}"


@pytest.mark.slow
@pytest.mark.parametrize("n_rounds", [10, pytest.param(400, marks=pytest.mark.soak)])
def test_a_signal_at_any_call_of_a_function_is_a_clean_stop(n_rounds: int, tmp_path: Path) -> None:
    log = tmp_path / "log"
    whole = in_child(lambda: stopped_at(0, log))
    n_calls = int(whole.output.split()[1])
    assert whole.output.startswith("0 ") and n_calls > 500
    for n_call in range(1, n_calls + 1, n_calls // n_rounds):
        log.unlink()
        done = in_child(lambda n_call=n_call: stopped_at(n_call, log))
        text = log.read_text()
        assert done.code == 0 and done.output.split()[0] in ("75", "0"), (n_call, done, text)
        assert done.output.startswith("75 ") or n_call > n_calls - 30, (n_call, done, text)
        assert "Traceback" not in text, n_call
