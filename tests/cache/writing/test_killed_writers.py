"""kill -9 while a cache is written: committed parts are whole, and resuming ends in the same bytes.

Children are forked with all imports done and die at a counted call (before it, after it, or half-way through a write)
or after a random time. The long version, at every call and 200 times at random, is part of `make soak`.
"""

import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import pytest

from kdpipe.cache import layout
from support.children import Child
from support.faults import count_calls, fault_at, killed
from support.tiny import digests_of, make_cache, parts_in, problems_of_committed, resume_cache, unsynced

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no fork and no kill -9")

ROUNDS, LONG_ROUNDS = 20, 200
MAX_KILLS = 2
WHEN: tuple[Literal["before", "after", "half"], ...] = ("before", "after", "half")

# Where a long run must have killed at least once.
BUILT = {f"building {what}" for what in (layout.MANIFEST, layout.TABLES, "a part", layout.INDEX)}
WHERE = BUILT | {layout.MANIFEST, layout.TABLES, layout.PARTS, layout.INDEX, layout.WORK, "the folder"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, str]]:
    """The cache_id and every file's digest when nothing goes wrong."""
    path = tmp_path_factory.mktemp("whole") / "cache"
    return make_cache(path), digests_of(path)


def phase(place: str) -> str:
    """What a killed writer was at, from the path of its last call: building something, or a name in the cache."""
    folder, _, name = place.rpartition("/cache/")[2].partition("/")
    if folder == layout.WORK and "~" in name:
        return "building a part" if name[:5].isdigit() else f"building {name.partition('~')[0]}"
    return folder if folder in layout.TOP_LEVEL else "the folder"


def check(path: Path) -> None:
    """Every part that is there is good; the cache may not even have begun."""
    if (path / layout.MANIFEST).exists():
        assert problems_of_committed(path) == []


def check_whole(path: Path, whole: tuple[str, dict[str, str]]) -> None:
    """Resuming ends in the cache of an undisturbed writer."""
    before = {name: digest for name, digest in digests_of(path).items() if name.startswith(layout.PARTS)}
    with unsynced():
        assert resume_cache(path) == whole[0]
    after = digests_of(path)
    assert after == whole[1]
    assert before.items() <= after.items()
    assert not (path / layout.WORK).exists()


def tell(descriptor: int, text: str) -> None:
    """Say something before the end."""
    os.write(descriptor, text.encode())


def die_at(path: Path, number: int, when: Literal["before", "after", "half"]) -> tuple[int, str]:
    """Write in a child until its call of that number; how it ended, and the path it was at."""
    read, write = os.pipe()

    def work() -> str:
        with fault_at(number, killed(partial(tell, write), when)):
            identity: str = resume_cache(path)
            return identity

    ended = Child(work).wait()
    os.close(write)
    messages = os.read(read, 4096).decode()
    os.close(read)
    assert ended.code in (0, -signal.SIGKILL), ended.output
    return ended.code, messages


def kill_by_calls(folder: Path, rounds: int | None, seed: int, whole: tuple[str, dict[str, str]]) -> Counter[str]:
    """Rounds of a writer that dies up to MAX_KILLS times; where it died.

    First deaths are spread evenly over all calls, one at every call when no number of rounds is given.
    """
    rng = random.Random(seed)
    n_calls = count_calls(partial(make_cache, folder / "counted" / "cache"))
    n_rounds = rounds or n_calls
    met: Counter[str] = Counter()
    for number in range(n_rounds):
        path = folder / str(number) / "cache"
        place = 1 + number * n_calls // n_rounds
        for _ in range(rng.randint(1, MAX_KILLS)):
            code, messages = die_at(path, place, rng.choice(WHEN))
            if code:
                met[phase(messages)] += 1
            check(path)
            place = rng.randint(1, n_calls)
        check_whole(path, whole)
    return met


def kill_by_time(folder: Path, rounds: int, seed: int, whole: tuple[str, dict[str, str]]) -> list[int]:
    """Rounds of a writer that is killed after a random time; how many parts stood each time it was."""
    rng = random.Random(seed)
    seconds, standing, attempts = 0.2, list[int](), 0
    while len(standing) < rounds:
        attempts += 1
        assert attempts <= 8 * rounds, "nearly every writer ends before it is killed"
        path = folder / str(attempts) / "cache"
        child = Child(partial(resume_cache, path))
        time.sleep(rng.uniform(0, seconds))
        child.kill()
        was_killed = child.wait().code != 0
        # The machine may be busy, and less so later: the time is fitted to how fast writers are now.
        seconds *= 1.2 if was_killed else 0.8
        if was_killed:
            standing.append(len(list(parts_in(path))) if (path / layout.MANIFEST).exists() else 0)
            check(path)
            check_whole(path, whole)
    return standing


@pytest.mark.slow
def test_a_writer_killed_at_any_call_leaves_good_parts_and_can_be_resumed(
    tmp_path: Path, whole: tuple[str, dict[str, str]], record_property: Callable[[str, object], None]
) -> None:
    met = kill_by_calls(tmp_path, ROUNDS, 1, whole)
    record_property("kills", sum(met.values()))
    sys.stdout.write(f"{ROUNDS} rounds, {sum(met.values())} kills at calls: {dict(met)}")
    assert {"building a part", layout.PARTS} <= set(met)


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_leaves_good_parts_and_can_be_resumed(
    tmp_path: Path, whole: tuple[str, dict[str, str]], record_property: Callable[[str, object], None]
) -> None:
    standing = kill_by_time(tmp_path, ROUNDS, 2, whole)
    record_property("kills", len(standing))
    sys.stdout.write(
        f"{ROUNDS} rounds, {len(standing)} kills at moments, with {dict(Counter(standing))} parts standing"
    )
    assert len(set(standing)) > 1


@pytest.mark.soak
def test_writers_killed_at_every_call_leave_good_parts(
    tmp_path: Path, whole: tuple[str, dict[str, str]], record_property: Callable[[str, object], None]
) -> None:
    met = kill_by_calls(tmp_path, None, 3, whole)
    record_property("kills", sum(met.values()))
    sys.stdout.write(f"{sum(met.values())} kills, one at every call and more: {dict(met)}")
    assert set(met) >= WHERE
    assert sum(met.values()) >= LONG_ROUNDS


@pytest.mark.soak
def test_writers_killed_at_many_moments_leave_good_parts(
    tmp_path: Path, whole: tuple[str, dict[str, str]], record_property: Callable[[str, object], None]
) -> None:
    standing = kill_by_time(tmp_path, LONG_ROUNDS, 4, whole)
    record_property("kills", len(standing))
    sys.stdout.write(f"{len(standing)} kills at moments, with {dict(Counter(standing))} parts standing")
    assert set(standing) >= {0, 1, 2, 3}
