"""A cache for anyone at once: threads, forks, spawned processes, read-only folders, and what an open one costs."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kdpipe.cache import open_cache
from kdpipe.cache.reader import Cache
from kdpipe.cache.stores.local_store import LocalStore
from kdpipe.schemas.errors import CacheDamaged
from kdpipe.schemas.target_kinds import Sampled
from support import tiny
from support.arbitrary import Wish, write
from support.reading import digest_of, digests_of_all, mapped_files, open_files, read_in_threads

WISH = Wish(
    keep=Sampled(draws=9), vocabulary_size=90, hidden=True, text=True, part_lengths=((20, 5), (70,), (1, 9)) * 4
)
linux_only = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="counts entries of /proc")
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
# Python 3.12 and later warn of what is tested here: a fork while other threads run.
forks_with_threads = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of twelve small parts."""
    return write(tmp_path_factory.mktemp("sharing") / "cache", WISH)


@pytest.fixture(scope="module")
def digests(path: Path) -> list[str]:
    """What a single thread reads."""
    return digests_of_all(open_cache(path))


@pytest.mark.slow
@pytest.mark.parametrize("max_open_parts", [1, 2, 32])
def test_threads_read_what_one_thread_reads(path: Path, digests: list[str], max_open_parts: int) -> None:
    seen, errors = read_in_threads(open_cache(path, max_open_parts=max_open_parts), n_threads=8, n_reads=25)
    assert not errors
    assert len(seen) > len(digests) // 2
    assert all(found == {digests[i]} for i, found in seen.items())


def in_child(work: Callable[[], bool], seconds: float = 20.0) -> str:
    """Do something in a forked child: "right", "wrong", or "hangs"."""
    child = os.fork()
    if child == 0:
        is_right = False
        try:
            is_right = work()
        finally:
            os._exit(0 if is_right else 1)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "right" if status == 0 else "wrong"
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hangs"


@forks
@forks_with_threads
def test_a_child_forked_while_a_thread_opens_a_part_can_read(
    path: Path, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = open_cache(path)
    inside, proceed = threading.Event(), threading.Event()
    walk = LocalStore.walk

    def slow_walk(store: LocalStore, folder: str, limit: int) -> dict[str, int]:
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            proceed.wait(timeout=900)
        return walk(store, folder, limit)

    monkeypatch.setattr(LocalStore, "walk", slow_walk)
    reader = threading.Thread(target=lambda: cache[0])
    reader.start()
    assert inside.wait(timeout=900)
    outcome = in_child(lambda: digests_of_all(cache) == digests)
    proceed.set()
    reader.join(timeout=900)
    assert outcome == "right"
    assert digest_of(cache, 0) == digests[0]


@pytest.mark.slow
@forks
@forks_with_threads
def test_children_forked_amid_reading_threads_read_the_same(path: Path, digests: list[str]) -> None:
    cache = open_cache(path, max_open_parts=2)
    stop = threading.Event()

    def read_on(first: int) -> None:
        i = first
        while not stop.is_set():
            digest_of(cache, i % len(cache))
            i += 5

    threads = [threading.Thread(target=read_on, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    try:
        outcomes = [in_child(lambda i=i: digest_of(cache, i) == digests[i]) for i in range(12)]  # type: ignore[misc]
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=900)
    assert outcomes == ["right"] * 12


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_cache_travels_to_another_process(path: Path, digests: list[str], method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"there is no {method}")
    cache = open_cache(path, "train", max_open_parts=3)
    assert digest_of(cache, 0) == digests[0]
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(digests_of_all, (cache,)) == digests


def test_a_cache_that_traveled_keeps_its_options(path: Path) -> None:
    cache = open_cache(path, "train", allow_partial=True, max_open_parts=2)
    rebuild, arguments = cache.__reduce__()
    again: Cache = rebuild(*arguments)
    assert (again.url, again.split_name, again.__reduce__()) == (cache.url, cache.split_name, cache.__reduce__())
    with pytest.raises(TypeError):
        Cache()  # type: ignore[call-arg]


@pytest.mark.slow
@linux_only
@pytest.mark.parametrize("max_open_parts", [1, 3])
def test_the_parts_read_last_stay_open_and_no_others(path: Path, digests: list[str], max_open_parts: int) -> None:
    cache = open_cache(path, max_open_parts=max_open_parts)
    by_part = [part for part, n in enumerate(cache.sequences_by_part) for _ in range(n)]
    recent: list[str] = []
    for i in [*range(len(cache)), *range(len(cache) - 1, -1, -3), 0, 2, 3, 0, 6, 0, 9]:
        assert digest_of(cache, i) == digests[i]
        part = f"{by_part[i]:05d}"
        recent = [*(name for name in recent if name != part), part][-max_open_parts:]
        mapped = {name.rpartition("/parts/")[2][:5] for name in mapped_files(path) if "/parts/" in name}
        assert mapped == set(recent)


@linux_only
def test_a_part_in_use_outlives_its_eviction(path: Path, digests: list[str]) -> None:
    cache = open_cache(path, max_open_parts=1)
    part, number = cache.locate(0)
    assert digest_of(cache, len(cache) - 1) == digests[-1]
    assert part.rows(number, number + 1).tokens.tolist() == WISH.pairs[0][0].tokens.tolist()


@pytest.mark.slow
@linux_only
def test_reading_leaks_no_files_and_no_maps(path: Path) -> None:
    digests_of_all(open_cache(path))  # what is imported and opened once
    gc.collect()
    files, maps = open_files(), len(mapped_files(path))
    for _ in range(3):
        cache = open_cache(path, max_open_parts=2)
        digests_of_all(cache)
        assert open_files() <= files + 2 * 8 + 1
        del cache
    gc.collect()
    assert (open_files(), len(mapped_files(path))) == (files, maps)


@pytest.mark.slow
@linux_only
def test_a_refused_part_leaves_no_file_open(path: Path, tmp_path: Path) -> None:
    broken = tiny.copy_cache(path, tmp_path / "broken")
    tiny.truncate(broken / "parts/00001/targets.zarr/row/c/0/0", 3)
    cache = open_cache(broken)
    assert len(cache[0]) == 20
    files = open_files()
    for _ in range(5):
        with pytest.raises(CacheDamaged, match=r"00001/targets\.zarr/row/c/0/0: the file has .* bytes"):
            cache[2]
    gc.collect()
    assert open_files() == files


READ_EVERYTHING = """
import os, sys
from kdpipe.cache import open_cache
unwanted = {"zarr", "torch", "fsspec", "transformers", "kdpipe.cache.writing.writer"}
assert not unwanted & set(sys.modules), "imported too much"
from kdpipe.cache.inspect import inspect_cache
import pyarrow, numpy

REFUSED = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.utime",
           "os.chmod", "os.chown", "fcntl.flock", "fcntl.lockf", "tempfile.mkstemp", "tempfile.mkdtemp"}

def refuse(event, arguments):
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    if event in REFUSED or (event == "open" and (arguments[2] or 0) & writes):
        os.write(2, f"a reader tried {event} {arguments}\\n".encode())
        os._exit(7)

sys.addaudithook(refuse)
path = sys.argv[1]
cache = open_cache(path)
for i in range(len(cache)):
    cache[i], cache.columns(i), cache.digests(i), cache.pooled(i), cache.texts(i), cache.token_bytes(i), cache.dense(i)
n = sum(len(rows) for rows in cache.scan())
assert inspect_cache(path).rows == n
assert not {"zarr", "torch", "fsspec", "transformers"} & set(sys.modules), "imported too much"
print(n)
if len(sys.argv) > 2:
    open(os.path.join(path, "x"), "w")
"""


def run_reader(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-B", "-c", READ_EVERYTHING, *arguments], text=True, capture_output=True, check=False
    )


def listing(path: Path) -> dict[str, tuple[int, int, int]]:
    found = {}
    for file in [path, *path.rglob("*")]:
        status = file.stat()
        found[str(file)] = (status.st_mode, status.st_size, status.st_mtime_ns)
    return found


@pytest.mark.slow
def test_reading_writes_locks_creates_and_imports_nothing(path: Path, tmp_path: Path) -> None:
    copy = tiny.copy_cache(path, tmp_path / "cache")
    for file in [*copy.rglob("*"), copy]:
        file.chmod(0o555 if file.is_dir() else 0o444)
    before = listing(copy)
    try:
        ended = run_reader(str(copy))
        assert ended.returncode == 0, ended.stderr
        assert int(ended.stdout) == sum(len(sequence.tokens) for sequence, _ in WISH.pairs)
        assert listing(copy) == before
        assert run_reader(str(copy), "and write").returncode == 7
    finally:
        for file in [copy, *copy.rglob("*")]:
            file.chmod(0o755)
