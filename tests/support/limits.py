"""Caches of strangers are read here: in a forked child, with little memory and time, and every answer comes back.

In: the folder of a cache. Out: how the reader took it, and what verify reports at its deepest level.
"""

import json
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import zarr  # noqa: F401  (imported late by the second reader; here once, not in every child)

from kdpipe.cache.stores.dispatch import open_store
from kdpipe.cache.verify.deep_child import Parts, check_part
from kdpipe.cache.verify.fast import fast_check
from kdpipe.cache.verify.full import full_problems
from kdpipe.schemas.errors import KdpipeError
from kdpipe.schemas.progress import SilentProgress
from kdpipe.schemas.verify_report import Problem
from support.children import Ended, in_child
from support.damage import everything_of

# Beyond what a process with all its imports has: a cache of some kilobytes needs a few megabytes.
MEMORY_BYTES = 1 << 30
SECONDS = 30
MAX_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class Verdict:
    """`code` and `message` of the reader's refusal, or 0 and a digest of what it read; what verify names."""

    code: int
    message: str
    verify_code: int
    problems: list[str]


def in_limits(work: Callable[[], str | None], memory_bytes: int = MEMORY_BYTES, seconds: int = SECONDS) -> Ended:
    """Run a function in a child that may not take more memory and time than these."""

    def limited() -> str | None:
        now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (now + memory_bytes,) * 2)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        return work()

    return in_child(limited, seconds + 30)


def deep_problems_of(path: Path) -> list[Problem]:
    """What verify names at its deepest level, without another process."""
    store = open_store(path)
    found = fast_check(store)
    problems = found.problems + full_problems(store, found, SilentProgress())
    if found.manifest is not None and found.records:
        parts = Parts(str(path))
        bad = {problem.part for problem in problems}
        for number in found.records:
            if number not in bad:
                problems += check_part(parts, number)
    return problems


def verdict_on(path: Path) -> Verdict:
    """Read and verify a cache; anything but a refusal goes through."""
    try:
        code, message = 0, everything_of(path)
    except KdpipeError as error:
        code, message = error.exit_code, error.message
    try:
        problems = [str(problem)[:400] for problem in deep_problems_of(path)][:MAX_PROBLEMS]
        return Verdict(code, message[:2000], 3 if problems else 0, problems)
    except KdpipeError as error:
        return Verdict(code, message[:2000], error.exit_code, [error.message[:400]])


def judged(path: Path) -> Verdict:
    """The same in a child with limits; a signal, a hang or another error fails the test."""
    ended = in_limits(lambda: json.dumps(asdict(verdict_on(path))))
    assert ended.code == 0, ended
    return Verdict(**json.loads(ended.output))


def assert_refused(path: Path, fragment: str, code: int = 3) -> None:
    """The reader refuses a cache with these words, and verify with some."""
    verdict = judged(path)
    assert fragment in verdict.message, verdict
    assert verdict.code == code, verdict
    assert verdict.verify_code == code and verdict.problems, verdict


def assert_named(path: Path, fragment: str) -> None:
    """Verify finds these words for a cache that can be read: its numbers are decodable, and not what they claim."""
    verdict = judged(path)
    assert any(fragment in problem for problem in verdict.problems), verdict
    assert verdict.code == 0 and verdict.verify_code == 3, verdict
