"""Generated programs, run against their tests in two sandboxed processes.

In: a program, a test, limits. Out: whether the test passed. The test calls the program through pipes and is the only
one that can write the result: a program passes by returning the expected values, in no other way. A sandbox has no
network and no other process, sees Python and system libraries only, and writes to a small folder only.
"""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path

from kdpipe.pipeline.evaluation.sandbox_worker import PASSED
from kdpipe.schemas.errors import ConfigError, KdpipeError

CHILD, WORKER = (Path(__file__).with_name(f"sandbox_{name}.py") for name in ("child", "worker"))
RESULT_BYTES = 4096
# A sandboxed process ends at once when its stdin is closed.
SECONDS_TO_END = 30.0
UNSAFE = "--unsafe-no-sandbox"
PROBE = """
import os, socket

def probe():
    return [_fails(action) for action in (_fork, _write, _connect)]

def _fails(action):
    try:
        action()
    except OSError:
        return True
    return False

def _fork():
    if os.fork() == 0:
        os._exit(0)

def _write():
    open("/usr/kdpipe", "w").close()

def _connect():
    if {name for _, name in socket.if_nameindex()} <= {"lo"}:
        raise OSError
"""
PROBE_TEST = """
def check(candidate):
    for what, fails in zip(("start processes", "write outside their folder", "use the network"), candidate()):
        assert fails, f"programs can {what}"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramLimits:
    """Of each process; `wall_seconds` end programs that wait, and `file_bytes` also bound all its files together."""

    cpu_seconds: int = 5
    wall_seconds: float = 30.0
    memory_bytes: int = 1 << 30
    file_bytes: int = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramTest:
    """The source of a program, that of a test with a function `check`, and the function that it is given."""

    program: str
    test: str
    function: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramOutcome:
    """`why` is empty if the test passed."""

    passed: bool
    why: str = ""


class SandboxRefused(KdpipeError):
    """A process could not be put into a sandbox."""


def check_sandbox() -> None:
    """Refuse a system without sandboxes, found out by a program that tries what it may not."""
    if not sys.platform.startswith("linux"):
        raise _refusal(f"sandboxes need Linux, and this is {sys.platform}")
    try:
        outcome = run_test(ProgramTest(program=PROBE, test=PROBE_TEST, function="probe"), ProgramLimits())
    except SandboxRefused as error:
        raise _refusal(error.message) from None
    if not outcome.passed:
        raise _refusal(outcome.why)


def _refusal(why: str) -> ConfigError:
    return ConfigError(
        f"this system cannot run generated programs in a sandbox: {why}",
        hint=f"run kdpipe eval where user namespaces are allowed; {UNSAFE} runs the programs with your permissions",
    )


def run_test(given: ProgramTest, limits: ProgramLimits, *, isolated: bool = True) -> ProgramOutcome:
    """Run a program and its test; `SandboxRefused` if they could not be started."""
    deadline = time.monotonic() + limits.wall_seconds
    with ExitStack() as stack:
        calls, answers, result = (_pipe(stack) for _ in range(3))
        sides = {
            "program": (given.program, (calls[0], answers[1])),
            "test": (given.test, (calls[1], answers[0], result[1])),
        }
        processes = [
            stack.enter_context(_process([mode, given.function], source, ends, limits, isolated))
            for mode, (source, ends) in sides.items()
        ]
        for end in (*calls, *answers, result[1]):
            end.close()
        text = _read(result[0], deadline)
    for process in processes:
        if process.problem:
            raise SandboxRefused(process.problem)
    if text is None:
        return ProgramOutcome(passed=False, why="out of time")
    passed = text == PASSED
    return ProgramOutcome(passed=passed, why="" if passed else text or "the test ended without a result")


class _Process:
    """A running child; `problem` is known once it has ended."""

    problem = ""


@contextmanager
def _process(
    command: Sequence[str], source: str, ends: Sequence[FileIO], limits: ProgramLimits, isolated: bool
) -> Iterator[_Process]:
    """Start the worker with a source and ends of pipes in a child; the end of the block ends it."""
    descriptors = [end.fileno() for end in ends]
    spec = {
        "isolated": isolated,
        "limits": asdict(limits),
        "files": {WORKER.name: WORKER.read_text(encoding="utf-8"), "source.py": source},
        "command": [WORKER.name, *command, *map(str, descriptors)],
        "descriptors": descriptors,
    }
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", str(CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=descriptors,
    )
    running = _Process()
    try:
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(spec).encode() + b"\n")
            process.stdin.flush()
        yield running
    finally:
        try:
            _, errors = process.communicate(timeout=SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()
            _, errors = process.communicate()
        running.problem = errors.decode(errors="replace").strip().rpartition("\n")[2]


def _pipe(stack: ExitStack) -> tuple[FileIO, FileIO]:
    """The ends of a pipe, as files: closing one twice does not close a file of another thread."""
    read, write = os.pipe()
    return stack.enter_context(FileIO(read, "r")), stack.enter_context(FileIO(write, "w"))


def _read(end: FileIO, deadline: float) -> str | None:
    """What is written until the end, or None at the deadline."""
    data = b""
    while len(data) < RESULT_BYTES:
        ready, _, _ = select.select([end], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        if not (more := end.read(RESULT_BYTES)):
            break
        data += more
    return data.decode(errors="replace")
