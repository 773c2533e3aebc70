"""Mutated caches: whatever the damage, a reader ends with a refusal or good data, in little memory and time."""

import json
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from support.damage import RECIPES, everything_of, make_chunked_cache
from support.limits import SECONDS, Verdict, in_limits, verdict_on
from support.mutate import mutate
from support.tiny import copy_cache, digests_of

ROUNDS = 500
LONG_ROUNDS = 10_000
BATCH = 25
# Batches of the fast suite.
QUICK = 2
Caches = dict[str, tuple[Path, str]]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Caches:
    """A cache of every kind, and all its contents."""
    made = {kind: make_chunked_cache(tmp_path_factory.mktemp("caches") / kind, kind) for kind in RECIPES}
    return {kind: (path, everything_of(path)) for kind, path in made.items()}


def outcome(verdict: Verdict, right: str, is_sealed: bool, is_changed: bool) -> str:
    """What came of a mutation; anything that may not be begins with a capital."""
    if verdict.code:
        return "refused" if verdict.verify_code else "Refused by the reader, and verify finds nothing"
    if is_changed and not is_sealed and not verdict.verify_code:
        return "Other bytes that verify does not name"
    if verdict.message == right:
        return "right, and named" if verdict.verify_code else "right"
    if not is_sealed:
        return "Other data without a word"
    return "other data, and named" if verdict.verify_code else "other data within the rules"


def run_batch(caches: Caches, folder: Path, seeds: range) -> list[str]:
    """Mutate, read and verify in one child with limits; a line for each seed, the last one unfinished if it died."""
    log = folder / "log"
    log.write_text("")

    def work() -> None:
        for seed in seeds:
            signal.alarm(SECONDS)
            path, right = list(caches.values())[seed // 2 % len(caches)]
            copy = copy_cache(path, folder / "mutated")
            words = mutate(copy, seed)
            is_changed = digests_of(copy) != digests_of(path)
            with log.open("a") as file:
                file.write(f"{words}: ")
                file.flush()
                file.write(f"{outcome(verdict_on(copy), right, bool(seed % 2), is_changed)}\n")
            shutil.rmtree(copy)

    ended = in_limits(work)
    lines = log.read_text().splitlines()
    assert ended.code == 0, f"ended with {ended.code} at {lines[-1:]}\n{ended.output}"
    return lines


def counted(lines: list[str]) -> Counter[str]:
    """How often each outcome came."""
    return Counter(line.rpartition(": ")[2] for line in lines)


def assert_good(lines: list[str], n: int) -> None:
    """Every mutation ended as it may."""
    assert len(lines) == n
    assert not [line for line in lines if line.rpartition(": ")[2][0].isupper()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "batch", [pytest.param(n, marks=() if n < QUICK else pytest.mark.slow) for n in range(ROUNDS // BATCH)]
)
def test_a_mutated_cache_is_refused_or_good(pristine: Caches, tmp_path: Path, batch: int) -> None:
    lines = run_batch(pristine, tmp_path, range(batch * BATCH, (batch + 1) * BATCH))
    assert_good(lines, BATCH)
    assert counted(lines)["refused"] > BATCH / 4


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_ten_thousand_mutated_caches_are_refused_or_good(
    pristine: Caches, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    lines: list[str] = []
    for first in range(ROUNDS, ROUNDS + LONG_ROUNDS, BATCH):
        lines += run_batch(pristine, tmp_path, range(first, first + BATCH))
    assert_good(lines, LONG_ROUNDS)
    record_property("outcomes", json.dumps(counted(lines)))
    sys.stdout.write(f"{LONG_ROUNDS:,} mutated caches: {dict(counted(lines).most_common())}\n")


def test_a_mutation_follows_from_its_seed(pristine: Caches, tmp_path: Path) -> None:
    path, _ = pristine["threshold"]
    for seed in (1, 2, 3):
        one, other = copy_cache(path, tmp_path / f"{seed}a"), copy_cache(path, tmp_path / f"{seed}b")
        assert mutate(one, seed) == mutate(other, seed)
        assert everything_or_error(one) == everything_or_error(other)


def everything_or_error(path: Path) -> str:
    """What reading gives, in words."""
    try:
        return everything_of(path)
    except Exception as error:
        return repr(error)


@pytest.mark.slow
def test_a_child_that_takes_too_much_is_seen() -> None:
    assert "MemoryError" in in_limits(lambda: str(len(bytearray(2 << 30)))).output
    assert in_limits(signal.pause, seconds=1).code == -signal.SIGALRM
