"""The deep level, from outside: a child process decodes everything, with limits on memory and time.

In: a local path or URL and the parts to look at. Out: the problems that the child names, and one for each part that
kills it.
Before it: `full.py`. After it: nothing. `deep_child.py` is the child; a part that ends or stalls it costs only itself.
"""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import IO

from kdpipe.cache.part_files import part_problem
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.report import Problem

SECONDS_A_PART = 600.0


def deep_problems(url: str, numbers: list[int], seconds_a_part: float = SECONDS_A_PART) -> list[Problem]:
    """Decode the given parts in a child, and in another child when one dies."""
    if url.startswith("memory:"):
        raise ConfigError(
            "a cache in this process's memory cannot be verified in another",
            hint="use --level full, or copy it to a folder",
        )
    problems: list[Problem] = []
    left = list(numbers)
    while left:
        done, found, end = _run_child(url, left, seconds_a_part)
        problems += found
        left = left[done:]
        if end and left:
            problems.append(part_problem(left.pop(0), "", f"decoding it {end}"))
        elif end:
            break
    return problems


def _run_child(url: str, numbers: list[int], seconds: float) -> tuple[int, list[Problem], str | None]:
    """One child: how many parts it finished, what it found, and how it ended when that was not well."""
    words = [sys.executable, "-m", "kdpipe.cache.verify.deep_child", url]
    problems: list[Problem] = []
    done = 0
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        _send(child.stdin, numbers)
        lines = _lines(child.stdout)
        while done < len(numbers):
            try:
                line = lines.get(timeout=seconds)
            except queue.Empty:
                child.kill()
                return done, problems, f"took more than {seconds:.0f} seconds"
            if line is None:
                break
            problems += [Problem(**problem) for problem in json.loads(line)]
            done += 1
        child.wait()
    return done, problems, None if done == len(numbers) else _ending(child.returncode)


def _send(stdin: IO[str], numbers: list[int]) -> None:
    """Tell the child its parts, in one go; it reads them all before it answers."""
    try:
        stdin.write(" ".join(map(str, numbers)))
        stdin.close()
    except BrokenPipeError:
        return


def _lines(stdout: IO[str]) -> "queue.Queue[str | None]":
    """The child's answers as they come, None at the end."""
    lines: queue.Queue[str | None] = queue.Queue()

    def pump() -> None:
        for line in _safely(stdout):
            lines.put(line)
        lines.put(None)

    threading.Thread(target=pump, daemon=True).start()
    return lines


def _safely(stdout: IO[str]) -> Iterator[str]:
    try:
        yield from stdout
    except ValueError:
        return


def _ending(code: int) -> str:
    if code < 0:
        return f"ended the process that did it (signal {-code})"
    return "took more memory than a part of its size may" if code == os.EX_OSERR else f"failed (exit code {code})"
