"""The deep level, from outside: a child process decodes everything, with limits on memory and time.

In: a local path and the parts to look at, as they come. Out: the problems that the child names, and one for each part
that kills it; an error when no child can begin, or when one may not read the cache. `deep_child.py` is the child; a
part that ends or stalls it costs only itself. A cache behind a URL is decoded from where `remote_parts.py` puts it.
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

SECONDS_A_PART = 600.0
# Imports from a cold network disk take the longest.
START_SECONDS = 300.0
# Beyond what the child has after its imports, and beyond some times the size of its largest part.
MEMORY_BYTES = 2 << 30
READY = "ready"
# EX_OSERR of BSD's sysexits, which Windows has no name for.
OUT_OF_MEMORY = 71
LAST_WORDS_BYTES = 2000
ERRORS: dict[int, type[KdpipeError]] = {1: CacheError, 2: ConfigError, 3: CacheDamaged}
Lines = queue.Queue[str | None]


class _ChildDied(Exception):
    """The child ended, or was given up, before it answered; the text says how."""


def deep_problems(
    path: str,
    numbers: Iterable[int],
    largest_bytes: int = 0,
    seconds_a_part: float = SECONDS_A_PART,
    memory_bytes: int = MEMORY_BYTES,
) -> list[Problem]:
    """The problems of some parts; see `decoded`."""
    parts = decoded(path, numbers, largest_bytes, seconds_a_part, memory_bytes)
    return [problem for _, problems in parts for problem in problems]


def decoded(
    path: str,
    numbers: Iterable[int],
    largest_bytes: int,
    seconds_a_part: float = SECONDS_A_PART,
    memory_bytes: int = MEMORY_BYTES,
) -> Generator[tuple[int, list[Problem]], None, None]:
    """Decode parts in a child, and in another child when one dies; each number is asked for when the one before it is
    done, and the largest part tells how much memory a child may take."""
    words = [path, "--memory-bytes", str(memory_bytes), "--largest-bytes", str(largest_bytes)]
    with ExitStack() as stack:
        child: _Child | None = None
        for number in numbers:
            child = child or stack.enter_context(_started(words))
            try:
                yield number, [Problem(**problem) for problem in child.ask(f"{number}\n", seconds_a_part)]
            except _ChildDied as end:
                said = child.last_words(1)
                stack.close()
                child = None
                yield number, [part_problem(number, "", f"decoding it {end}{f' ({said})' if said else ''}")]


@contextmanager
def _started(words: Sequence[str]) -> Iterator["_Child"]:
    """A child that has its imports and the cache; that it does not come so far is no part's fault."""
    # -P: without it the current folder, which may be the cache of a stranger, is where the child's imports begin.
    program = [sys.executable, "-P", "-m", "kdpipe.cache.verify.deep_child", *words]
    with scratch_folder("kdpipe-deep-", "starting the process that decodes parts") as folder, ExitStack() as stack:
        complaints = stack.enter_context((folder / "complaints").open("w+b"))
        with shielded():
            process = subprocess.Popen(
                program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, text=True
            )
        with process:
            try:
                child = _Child(process, complaints)
                child.await_start()
                yield child
            finally:
                process.kill()


@final
class _Child:
    """A process that decodes parts."""

    def __init__(self, process: "subprocess.Popen[str]", complaints: IO[bytes]) -> None:
        self._process, self._complaints, self._lines = process, complaints, _lines(process)

    def await_start(self) -> None:
        """Wait until it says that it is ready."""
        try:
            answer = self._answer(START_SECONDS)
        except _ChildDied as end:
            said = self.last_words(3)
            raise KdpipeError(
                f"the process that decodes parts could not begin: it {end}{f': {said}' if said else ''}",
                hint="see that this Python can import kdpipe and that memory is free, or use --level full",
            ) from None
        if answer != READY:
            raise KdpipeError(
                f"the process that decodes parts began with other words than {READY!r}: {str(answer)[:200]}"
            )

    def ask(self, line: str, seconds: float) -> Any:
        """Its answer to a line."""
        assert self._process.stdin is not None
        try:
            # Past Python's own buffer, which would be flushed once more when it is closed.
            os.write(self._process.stdin.fileno(), line.encode())
        except BrokenPipeError:
            raise _ChildDied(_ending(self._process.wait())) from None
        return self._answer(seconds)

    def _answer(self, seconds: float) -> Any:
        """Its next answer; what it could not read is an error here as it was there."""
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

    def last_words(self, n_lines: int) -> str:
        """The last lines of what it said on stderr."""
        size = self._complaints.seek(0, os.SEEK_END)
        self._complaints.seek(max(0, size - LAST_WORDS_BYTES))
        said = self._complaints.read().decode(errors="replace").split("\n")
        return " | ".join([line.strip() for line in said if line.strip()][-n_lines:])


def _lines(child: "subprocess.Popen[str]") -> Lines:
    """The child's answers as they come, None at the end; a line that it did not finish is none."""
    assert child.stdout is not None
    stdout = child.stdout
    lines: Lines = queue.Queue()

    def pump() -> None:
        try:
            for line in stdout:
                if line.endswith("\n"):
                    lines.put(line)
        except ValueError:  # closed by the other thread, which wants no more
            pass
        lines.put(None)

    threading.Thread(target=pump, daemon=True).start()
    return lines


def _ending(code: int) -> str:
    if code < 0:
        return f"was ended by signal {-code}"
    if code == OUT_OF_MEMORY:
        return "took more memory than a part of its size may"
    return f"failed with exit code {code}"
