"""The deep level, parent side: a child process decodes everything, with limits on memory and time.

In: a local path and the parts to check. Out: the problems that the child reports, and one for each part that crashes or
stalls it; an error if no child can start or read the cache. `deep_child.py` is the child. The parts of a remote cache
are decoded where `remote_parts.py` downloads them.
"""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO, Any, final

from kdpipe.cache.durable.scratch import scratch_folder
from kdpipe.cache.parts.part_files import part_problem
from kdpipe.cache.verify.children import shielded
from kdpipe.schemas.errors import CacheDamaged, CacheError, ConfigError, KdpipeError
from kdpipe.schemas.verify_report import Problem

SECONDS_PER_PART = 600.0
# Long, for imports from a cold network disk.
START_SECONDS = 300.0
# In addition to the memory after imports and a multiple of the largest part.
MEMORY_BYTES = 2 << 30
READY = "ready"
# EX_OSERR of BSD's sysexits; Windows does not define it.
OUT_OF_MEMORY = 71
STDERR_TAIL_BYTES = 2000
ERRORS: dict[int, type[KdpipeError]] = {1: CacheError, 2: ConfigError, 3: CacheDamaged}
Lines = queue.Queue[str | None]


class _ChildDied(Exception):
    """The child ended or was stopped before it answered; the message states how."""


def deep_problems(
    path: str,
    numbers: Iterable[int],
    largest_bytes: int = 0,
    seconds_per_part: float = SECONDS_PER_PART,
    memory_bytes: int = MEMORY_BYTES,
) -> list[Problem]:
    """The problems of some parts; see `decoded`."""
    parts = decoded(path, numbers, largest_bytes, seconds_per_part, memory_bytes)
    return [problem for _, problems in parts for problem in problems]


def decoded(
    path: str,
    numbers: Iterable[int],
    largest_bytes: int,
    seconds_per_part: float = SECONDS_PER_PART,
    memory_bytes: int = MEMORY_BYTES,
) -> Generator[tuple[int, list[Problem]], None, None]:
    """Decode parts in a child, and in a new child after a crash; the next number is taken once a part is done.

    The memory limit follows from the largest part.
    """
    words = [path, "--memory-bytes", str(memory_bytes), "--largest-bytes", str(largest_bytes)]
    with ExitStack() as stack:
        child: _Child | None = None
        for number in numbers:
            child = child or stack.enter_context(_started(words))
            try:
                yield number, [Problem(**problem) for problem in child.ask(f"{number}\n", seconds_per_part)]
            except _ChildDied as end:
                stderr = child.stderr_tail(1)
                stack.close()
                child = None
                yield number, [part_problem(number, "", f"decoding it {end}{f' ({stderr})' if stderr else ''}")]


@contextmanager
def _started(words: Sequence[str]) -> Iterator["_Child"]:
    """A child that has opened the cache; a failure up to here is not a problem of a part."""
    # -P: the current folder, which may be an untrusted cache, is not on the import path.
    program = [sys.executable, "-P", "-m", "kdpipe.cache.verify.deep_child", *words]
    with scratch_folder("kdpipe-deep-", "starting the process that decodes parts") as folder, ExitStack() as stack:
        stderr_file = stack.enter_context((folder / "stderr_file").open("w+b"))
        with shielded():
            process = subprocess.Popen(
                program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr_file, text=True
            )
        with process:
            try:
                child = _Child(process, stderr_file)
                child.await_start()
                yield child
            finally:
                process.kill()


@final
class _Child:
    """A process that decodes parts."""

    def __init__(self, process: "subprocess.Popen[str]", stderr_file: IO[bytes]) -> None:
        self._process, self._stderr_file, self._lines = process, stderr_file, _lines(process)

    def await_start(self) -> None:
        """Wait until the child is ready."""
        try:
            answer = self._answer(START_SECONDS)
        except _ChildDied as end:
            stderr = self.stderr_tail(3)
            raise KdpipeError(
                f"the decoder process could not start: it {end}{f': {stderr}' if stderr else ''}",
                hint="check that this Python can import kdpipe and that memory is free, or use --level full",
            ) from None
        if answer != READY:
            raise KdpipeError(f"the decoder process answered {str(answer)[:200]!r} at its start, expected {READY!r}")

    def ask(self, line: str, seconds: float) -> Any:
        """The child's answer to a line."""
        assert self._process.stdin is not None
        try:
            # Unbuffered: Python would flush its own buffer again on close.
            os.write(self._process.stdin.fileno(), line.encode())
        except BrokenPipeError:
            raise _ChildDied(_ending(self._process.wait())) from None
        return self._answer(seconds)

    def _answer(self, seconds: float) -> Any:
        """The next answer; an error of the child is raised here."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            self._process.kill()
            raise _ChildDied(f"took more than {seconds:g} seconds") from None
        if line is None:
            raise _ChildDied(_ending(self._process.wait()))
        answer = json.loads(line)
        if isinstance(answer, dict):
            raise ERRORS.get(answer["exit_code"], KdpipeError)(answer["message"], hint=answer["hint"])
        return answer

    def stderr_tail(self, n_lines: int) -> str:
        """The last lines of the child's stderr."""
        size = self._stderr_file.seek(0, os.SEEK_END)
        self._stderr_file.seek(max(0, size - STDERR_TAIL_BYTES))
        lines = self._stderr_file.read().decode(errors="replace").split("\n")
        return " | ".join([line.strip() for line in lines if line.strip()][-n_lines:])


def _lines(child: "subprocess.Popen[str]") -> Lines:
    """The child's answers, then None; an incomplete line is dropped."""
    assert child.stdout is not None
    stdout = child.stdout
    lines: Lines = queue.Queue()

    def pump() -> None:
        try:
            for line in stdout:
                if line.endswith("\n"):
                    lines.put(line)
        except ValueError:  # closed by the other thread
            pass
        lines.put(None)

    threading.Thread(target=pump, daemon=True).start()
    return lines


def _ending(code: int) -> str:
    if code < 0:
        return f"was ended by signal {-code}"
    if code == OUT_OF_MEMORY:
        return "exceeded the memory limit for a part of its size"
    return f"failed with exit code {code}"
