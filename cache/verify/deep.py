"""The deep level, from outside: a child process decodes everything, with limits on memory and time.

In: a local path or URL and the parts to look at. Out: the problems that the child names, and one for each part that
kills it; an error when no child can begin, or when one cannot reach the cache.
Before it: `full.py`. After it: nothing. `deep_child.py` is the child; a part that ends or stalls it costs only itself.
"""

import json
import os
import queue
import subprocess
import sys
import threading
from contextlib import ExitStack
from typing import IO, Any

from kdpipe.cache.addresses import is_url
from kdpipe.cache.children import shielded
from kdpipe.cache.part_files import part_problem
from kdpipe.cache.retries import Patience
from kdpipe.cache.scratch import scratch_folder
from kdpipe.schemas.errors import CacheDamaged, CacheError, ConfigError, KdpipeError, Unreachable
from kdpipe.schemas.report import Problem

SECONDS_A_PART = 600.0
# Imports from a cold network disk take the longest.
START_SECONDS = 300.0
# Beyond what the child has after its imports, and beyond some times the size of its largest part.
MEMORY_BYTES = 2 << 30
READY = "ready"
# EX_OSERR of BSD's sysexits, which Windows has no name for.
OUT_OF_MEMORY = 71
LAST_WORDS_BYTES = 2000
ERRORS: dict[int, type[KdpipeError]] = {1: CacheError, 2: ConfigError, 3: CacheDamaged, 75: Unreachable}
Lines = queue.Queue[str | None]


class _Died(Exception):
    """The child ended, or was given up, before it answered; the text says how."""


def deep_problems(
    url: str,
    numbers: list[int],
    patience: Patience | None = None,
    seconds_a_part: float = SECONDS_A_PART,
    memory_bytes: int = MEMORY_BYTES,
) -> list[Problem]:
    """Decode the given parts in a child, and in another child when one dies."""
    if url.startswith("memory:"):
        raise ConfigError(
            "a cache in this process's memory cannot be verified in another",
            hint="use --level full, or copy it to a folder",
        )
    problems: list[Problem] = []
    left, patience = list(numbers), patience or Patience()
    while left:
        done, found, end = _run_child(url, left, patience, seconds_a_part, memory_bytes)
        problems += found
        left = left[done:]
        if end is not None:
            problems.append(part_problem(left.pop(0), "", f"decoding it {end}"))
    return problems


def _run_child(
    url: str, numbers: list[int], patience: Patience, seconds: float, memory_bytes: int
) -> tuple[int, list[Problem], str | None]:
    """One child: how many parts it finished, what it found, and how it ended when that was before the last."""
    # -P: without it the current folder, which may be the cache of a stranger, is where the child's imports begin.
    program = [sys.executable, "-P", "-m", "kdpipe.cache.verify.deep_child"]
    words = [*program, url, "--memory-bytes", str(memory_bytes), "--retry-for", str(patience.budget)]
    more = patience.budget if is_url(url) else 0.0  # which the child may spend on retries
    problems: list[Problem] = []
    done = 0
    with scratch_folder("kdpipe-deep-", "starting the process that decodes parts") as folder, ExitStack() as stack:
        asked, complaints = (stack.enter_context((folder / name).open("w+b")) for name in ("asked", "complaints"))
        asked.write(" ".join(map(str, numbers)).encode())
        asked.seek(0)
        with shielded():
            child = subprocess.Popen(words, stdin=asked, stdout=subprocess.PIPE, stderr=complaints, text=True)
        with child:
            try:
                lines = _lines(child)
                _await_start(child, lines, complaints, patience, START_SECONDS + more)
                for _ in numbers:
                    problems += [Problem(**problem) for problem in _answer(child, lines, seconds + more, patience)]
                    done += 1
            except _Died as end:
                said = _last_words(complaints, 1)
                return done, problems, f"{end}{f' ({said})' if said else ''}"
            finally:
                child.kill()
    return done, problems, None


def _await_start(
    child: "subprocess.Popen[str]", lines: Lines, complaints: IO[bytes], patience: Patience, seconds: float
) -> None:
    """Wait until the child has its imports and the cache; that it does not come so far is no part's fault."""
    try:
        answer = _answer(child, lines, seconds, patience)
    except _Died as end:
        said = _last_words(complaints, 3)
        raise KdpipeError(
            f"the process that decodes parts could not begin: it {end}{f': {said}' if said else ''}",
            hint="see that this Python can import kdpipe and that memory is free, or use --level full",
        ) from None
    if answer != READY:
        raise KdpipeError(f"the process that decodes parts began with other words than {READY!r}: {str(answer)[:200]}")


def _answer(child: "subprocess.Popen[str]", lines: Lines, seconds: float, patience: Patience) -> Any:
    """The child's next answer; what it could not reach is an error here as it was there."""
    try:
        line = lines.get(timeout=seconds)
    except queue.Empty:
        child.kill()
        raise _Died(f"took more than {seconds:g} seconds") from None
    if line is None:
        raise _Died(_ending(child.wait()))
    answer = json.loads(line)
    if isinstance(answer, dict) and "told" in answer:  # a retry
        patience.told(answer["told"])
        return _answer(child, lines, seconds, patience)
    if isinstance(answer, dict):
        raise ERRORS.get(answer["exit_code"], KdpipeError)(answer["message"], hint=answer["hint"])
    return answer


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


def _last_words(complaints: IO[bytes], n_lines: int) -> str:
    """The last lines of what the child said on stderr."""
    size = complaints.seek(0, os.SEEK_END)
    complaints.seek(max(0, size - LAST_WORDS_BYTES))
    said = complaints.read().decode(errors="replace").split("\n")
    return " | ".join([line.strip() for line in said if line.strip()][-n_lines:])
