"""The deep level's child processes: real ones, killed, stopped, starved and misled, through `deep_problems`.

`at_part` plants a `sitecustomize` that does something to the child when it opens a certain part.
"""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from kdpipe.cache import layout
from kdpipe.cache.verify import verify_cache
from kdpipe.cache.verify.deep import decoded, deep_problems
from kdpipe.cache.verify.deep_child import limit_memory, limit_processor_seconds
from kdpipe.schemas.errors import CacheError, ConfigError, KdpipeError
from support.children import in_child
from support.commands import kdpipe
from support.damage import fresh_cache, recode
from support.mutate import mutate
from support.tiny import copy_cache, flip_bit, make_cache, unsynced

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals and limits of Linux")

PART = "parts/00001"
PLANT = """
import os, signal, sys, time
if "kdpipe.cache.verify.deep_child" in sys.orig_argv:
    WHEN
"""
AT_PART = """
    from kdpipe.cache.parts import part_reader
    opened = part_reader.PartReader.__init__
    def opening(self, store, manifest, decoder, number, row):
        if number == 1:
            WHAT
        opened(self, store, manifest, decoder, number, row)
    part_reader.PartReader.__init__ = opening
"""
Plant = Callable[[str], None]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small cache of four parts."""
    path = tmp_path_factory.mktemp("deep") / "cache"
    with unsynced():
        make_cache(path)
    return path


@pytest.fixture
def at_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plant:
    """Lets every child do something when it starts."""

    def plant(what: str) -> None:
        (tmp_path / "planted").mkdir()
        (tmp_path / "planted" / "sitecustomize.py").write_text(PLANT.replace("WHEN", what))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "planted"), prepend=os.pathsep)

    return plant


@pytest.fixture
def at_part(at_start: Plant) -> Plant:
    """Lets every child do something when it opens part 1."""
    return lambda what: at_start(AT_PART.strip().replace("WHAT", what))


def broken_last_part(cache: Path, tmp_path: Path) -> Path:
    """A copy whose last part shows, when decoded, that it was looked at."""
    copy = copy_cache(cache, tmp_path / "cache")
    flip_bit(copy / "parts/00003" / layout.array_shard("id"), 3)
    return copy


def children() -> list[psutil.Process]:
    """The children of the deep level that are alive."""
    return [child for child in psutil.Process().children() if "deep_child" in " ".join(child.cmdline())]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "seconds", "reported"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", 60, "decoding it was ended by signal 9"),
        ("os.kill(os.getpid(), signal.SIGSTOP)", 20, "decoding it took more than 20 seconds"),
        ("bytearray(1 << 40)", 60, "decoding it exceeded the memory limit for a part of its size"),
        ("os._exit(7)", 60, "decoding it failed with exit code 7"),
        ("raise ZeroDivisionError('x')", 60, "decoding it failed with exit code 1"),
    ],
    ids=["killed", "stopped", "memory", "exit", "error"],
)
def test_a_part_that_ends_its_child_costs_only_itself(
    what: str, seconds: float, reported: str, cache: Path, tmp_path: Path, at_part: Plant
) -> None:
    at_part(what)
    found = deep_problems(str(broken_last_part(cache, tmp_path)), [0, 1, 2, 3], seconds_per_part=seconds)
    assert [problem.part for problem in found] == [1, 3]
    assert found[0].file == PART and found[0].what.startswith(reported)
    assert ("ZeroDivisionError: x" in found[0].what) == ("ZeroDivisionError" in what)
    assert "chunk" in found[1].what
    assert not children()


@pytest.mark.slow
def test_a_requested_limit_is_enforced(cache: Path) -> None:
    found = deep_problems(str(cache), [2], memory_bytes=1 << 16)
    assert [problem.what for problem in found] == ["decoding it exceeded the memory limit for a part of its size"]
    assert deep_problems(str(cache), [2]) == []


@pytest.mark.slow
def test_an_interrupted_child_gives_no_result(cache: Path, at_part: Plant) -> None:
    at_part("sys.stdout.write('[{'); sys.stdout.flush(); os._exit(0)")
    found = deep_problems(str(cache), [0, 1, 2])
    assert [(problem.part, problem.what) for problem in found] == [(1, "decoding it failed with exit code 0")]


@pytest.mark.parametrize(
    ("what", "reported"),
    [
        ("sys.stderr.write('no numpy here\\n'); os._exit(5)", "it failed with exit code 5: no numpy here"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "it was ended by signal 9"),
        ("print('[]', flush=True)", "expected 'ready'"),
    ],
)
def test_a_child_that_cannot_start_is_an_error_and_no_problem(
    what: str, reported: str, cache: Path, at_start: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_start(what)
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *words, **options: started.append(1) or popen(*words, **options))
    with pytest.raises(KdpipeError, match="the decoder process") as caught:
        deep_problems(str(cache), [0, 1, 2])
    assert reported in caught.value.message and caught.value.exit_code == 1
    assert len(started) == 1


def test_a_child_that_never_becomes_ready_is_stopped(
    cache: Path, at_start: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_start("time.sleep(60)")
    monkeypatch.setattr("kdpipe.cache.verify.deep.START_SECONDS", 0.5)
    with pytest.raises(KdpipeError, match=r"0\.5 seconds"):
        deep_problems(str(cache), [0])
    assert not children()


def test_a_cache_that_is_no_longer_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder:"):
        deep_problems(str(tmp_path / "gone"), [0, 1])


def test_what_a_child_may_not_read_is_an_error_and_no_damage(cache: Path, at_part: Plant) -> None:
    at_part("os.open = lambda *words: (_ for _ in ()).throw(PermissionError(13, 'Permission denied'))")
    with pytest.raises(CacheError, match=r"00001/part\.json cannot be read: Permission denied") as caught:
        deep_problems(str(cache), [0, 1, 2])
    assert caught.value.exit_code == 1 and "permissions" in str(caught.value.hint)


def test_an_interrupt_leaves_no_child_behind(cache: Path, at_part: Plant) -> None:
    at_part("time.sleep(60)")

    def interrupt() -> None:
        while not children():
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        deep_problems(str(cache), [0, 1])
    thread.join()
    assert not children()


def test_the_limits_are_those_that_are_stated() -> None:
    def work() -> str:
        limit_processor_seconds(100)
        limit_memory(1 << 26)
        now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        memory, processor = resource.getrlimit(resource.RLIMIT_AS), resource.getrlimit(resource.RLIMIT_CPU)
        assert memory[0] == memory[1] and abs(memory[0] - now - (1 << 26)) < 1 << 20
        used = resource.getrusage(resource.RUSAGE_SELF)
        assert 99 <= processor[0] - used.ru_utime - used.ru_stime <= 101
        bytearray(1 << 24)
        try:
            bytearray(1 << 27)
        except MemoryError:
            return "bound"
        return "free"

    ended = in_child(work)
    assert (ended.code, ended.output) == (0, "bound")


def test_processor_time_ends_a_process_and_a_lower_limit_is_kept() -> None:
    def busy() -> None:
        limit_processor_seconds(1)
        while True:
            pass

    def lowered() -> str:
        resource.setrlimit(resource.RLIMIT_CPU, (500, 500))
        resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))
        limit_processor_seconds(3600)
        limit_memory(1 << 50)
        return f"{resource.getrlimit(resource.RLIMIT_CPU)} {resource.getrlimit(resource.RLIMIT_AS)}"

    assert in_child(busy).code == -signal.SIGXCPU
    ended = in_child(lowered)
    assert ended.output == f"(500, 500) {(1 << 40, 1 << 40)}", ended


@pytest.mark.slow
def test_a_part_is_requested_after_the_one_before_it(cache: Path) -> None:
    requested = list[int]()

    def numbers() -> Iterator[int]:
        for number in (2, 0):
            requested.append(number)
            yield number

    for number, problems in decoded(str(cache), numbers(), 0):
        assert (requested[-1], problems) == (number, [])
    assert requested == [2, 0] and not children()


@pytest.mark.slow
def test_files_of_a_cache_are_never_imported(cache: Path, tmp_path: Path) -> None:
    copy = copy_cache(cache, tmp_path / "evil")
    names = ("numpy", "json", "sitecustomize", "kdpipe")
    for name in names:
        (copy / f"{name}.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'a').write({name!r})\n")
    words = [kdpipe(), "cache", "verify", ".", "--level", "deep"]
    answer = subprocess.run(words, cwd=copy, capture_output=True, text=True, check=False)
    assert not (tmp_path / "marker").exists()
    assert answer.returncode == 3 and answer.stderr == ""
    for name in names:
        assert f"{name}.py: " in answer.stdout
    assert ".: 4 problems (4 parts, " in answer.stdout.splitlines()[-1]


@pytest.mark.parametrize("level", ["Deep", "", "fastest"])
def test_an_unknown_level_is_refused_first(level: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"level '{level}'") as caught:
        verify_cache(tmp_path / "nowhere", level)  # type: ignore[arg-type]  # the mistake is the subject
    assert caught.value.hint == "the levels are fast, full, deep"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("array", "column", "reported"),
    [
        ("logprob", "", "exact mass and tail of a row do not sum to 1"),
        ("row", "loss_mask", "a row with loss_mask false has targets"),
        ("row", "entropy", "entropy is a number where"),
    ],
)
def test_numbers_that_lie_are_named_through_a_real_child(
    array: str, column: str, reported: str, tmp_path: Path
) -> None:
    path = fresh_cache(tmp_path / "cache")
    recode(path, array, np.zeros_like, column)
    report = verify_cache(path, "deep")
    assert not report.ok and {problem.part for problem in report.problems} == {0}
    assert any(reported in problem.what for problem in report.problems), report.problems


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 6, 11, 16, 23, 28])
def test_mutated_caches_get_a_verdict_through_a_real_child(seed: int, tmp_path: Path) -> None:
    path = fresh_cache(tmp_path / "cache")
    words = mutate(path, seed)
    try:
        report = verify_cache(path, "deep")
    except KdpipeError as error:
        assert error.exit_code in (2, 3, 4), words
    else:
        assert not any("decoding it" in problem.what for problem in report.problems), words
