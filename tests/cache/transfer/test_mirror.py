"""Reading a far cache through a bounded folder: the same rows, parts fetched whole, room made, faults gone through."""

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from kdpipe.cache import layout, open_cache
from kdpipe.cache.fetch.receiver import Receiver
from kdpipe.cache.mirror import mirror as near
from kdpipe.cache.mirror.leases import PartLease, exclusive
from kdpipe.cache.mirror.mirror import MirrorStore, mirrored_store
from kdpipe.cache.order import SequenceOrder
from kdpipe.cache.parts.index import IndexRow
from kdpipe.cache.stores import http_store as http
from kdpipe.cache.stores.addresses import MirrorSettings
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.schemas.errors import CacheWriteError, ConfigError, Unreachable
from support import tiny
from support.children import Child
from support.gates import Gate
from support.reading import digests_of_all
from support.web import Site, serving

SHORT = RetryPolicy(budget=0.2, first=0.001, longest=0.002)
LONG = RetryPolicy(budget=900.0, first=0.001, longest=0.002)


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(http, "TIMEOUT", httpx.Timeout(60.0))
    monkeypatch.setattr(near, "RetryPolicy", lambda: LONG)
    monkeypatch.setattr(near, "_stores", {})
    with tiny.unsynced():
        yield


def sizes_of(path: Path) -> list[int]:
    return [row.n_bytes for row in open_cache(path).parts]


def there(folder: Path) -> set[str]:
    return {one.name for one in folder.glob(f"*/{layout.PARTS}/*")}


def bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob(f"*/{layout.PARTS}/**/*") if file.is_file())


@pytest.mark.slow
def test_every_row_is_as_it_is_there_and_is_fetched_once(path: Path, tmp_path: Path) -> None:
    site = Site(path)
    with serving(site) as url:
        cache = open_cache(url, mirror=MirrorSettings(folder=tmp_path, limit=1 << 30))
        assert digests_of_all(cache) == digests_of_all(open_cache(path))
        n_read = site.n_reads
        assert digests_of_all(cache) == digests_of_all(open_cache(path))
        assert site.n_reads == n_read
    assert mirrored_store(url, MirrorSettings(folder=tmp_path, limit=1 << 30)).n_fetched == len(cache.parts)


@pytest.mark.slow
def test_a_mirror_serves_the_next_process_too(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site, mirror = Site(path), MirrorSettings(folder=tmp_path, limit=1 << 30)
    with serving(site) as url:
        digests_of_all(open_cache(url, mirror=mirror))
        monkeypatch.setattr(near, "_stores", {})
        site.requested.clear()
        assert digests_of_all(open_cache(url, mirror=mirror)) == digests_of_all(open_cache(path))
    assert not [requested for requested in site.requested if "bytes=" in requested]


@pytest.mark.slow
def test_a_limit_of_two_parts_is_kept_and_every_row_is_the_same(path: Path, tmp_path: Path) -> None:
    limit = 2 * max(sizes_of(path))
    local = open_cache(path)
    with serving(Site(path)) as url:
        cache = open_cache(url, mirror=MirrorSettings(folder=tmp_path, limit=limit))
        order = SequenceOrder(cache.sequences_by_part, seed=1).at(range(2 * len(cache))).tolist()
        cache.expect(order)
        for number in order:
            assert cache[number].tokens.tolist() == local[number].tokens.tolist()
            assert bytes_of(tmp_path) <= limit
        assert mirrored_store(url, MirrorSettings(folder=tmp_path, limit=limit)).n_fetched >= len(cache.parts)


@pytest.mark.slow
def test_a_reader_waiting_for_space_uses_a_part_that_another_downloaded(path: Path, tmp_path: Path) -> None:
    """The others hold all that is there: without a look at the folder both would wait for each other for ever."""
    least = 2 * max(sizes_of(path))
    with serving(Site(path)) as url:
        narrow, wide = (
            MirrorStore(http.HttpStore(url), MirrorSettings(folder=tmp_path, limit=limit), RetryPolicy(budget=60.0))
            for limit in (least, 2 * least)
        )
        held = [wide.hold(number) for number in (0, 1)]
        waiting = threading.Thread(target=lambda: held.append(narrow.hold(2)), daemon=True)
        waiting.start()
        waiting.join(5 * near.PAUSE)
        assert waiting.is_alive(), "there was room"
        held.append(wide.hold(2))
        waiting.join(900)
        assert not waiting.is_alive() and (narrow.n_fetched, wide.n_fetched) == (0, 3)
        for lease in held:
            lease.release()


@pytest.mark.slow
def test_several_readers_of_a_process_share_the_limit(path: Path, tmp_path: Path) -> None:
    limit = 2 * max(sizes_of(path))
    with serving(Site(path)) as url:
        mirror = MirrorSettings(folder=tmp_path, limit=limit)
        caches = [open_cache(url, split, mirror=mirror) for split in ("train", "validation", None)]
        for _ in range(3):
            for cache in caches:
                cache[0], cache[len(cache) - 1]
        with pytest.raises(ConfigError, match=rf"{url} .* {limit:,} bytes"):
            open_cache(url, mirror=MirrorSettings(folder=tmp_path, limit=limit + 1))


@pytest.mark.slow
def test_parts_that_are_expected_come_before_they_are_read(path: Path, tmp_path: Path) -> None:
    with serving(Site(path)) as url:
        cache = open_cache(url, mirror=MirrorSettings(folder=tmp_path, limit=1 << 30))
        cache.expect(range(len(cache)))
        due, deadline = {f"{row.part:05d}" for row in cache.parts}, time.monotonic() + 900
        while there(tmp_path) != due:
            assert time.monotonic() < deadline, "parts that are expected do not come"
            time.sleep(0.01)


@pytest.mark.slow
def test_a_part_that_is_read_is_not_removed(path: Path, tmp_path: Path) -> None:
    with serving(Site(path)) as url:
        far = http.HttpStore(url)
        store = MirrorStore(far, MirrorSettings(folder=tmp_path, limit=2 * max(sizes_of(path))), SHORT)
        leases = [store.hold(0), store.hold(1)]
        with pytest.raises(CacheWriteError, match=r"part 2 in .*[\d,]+ bytes are being read") as caught:
            store.hold(2)
        assert "--cache-limit" in str(caught.value.hint)
        assert there(tmp_path) == {"00000", "00001"}
        leases[0].release()
        store.hold(2).release()
        assert there(tmp_path) == {"00001", "00002"}


def test_parts_that_processes_bring_at_once_are_too_many_for_a_moment_only(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror, take = MirrorSettings(folder=tmp_path, limit=2 * max(sizes_of(path))), Receiver.take_part
    with serving(Site(path)) as url:
        one, other = (MirrorStore(http.HttpStore(url), mirror, RetryPolicy(budget=60.0)) for _ in range(2))
        one.hold(0).release()

        def take_after_the_other(receiver: Receiver, number: int, row: IndexRow | None) -> None:
            monkeypatch.undo()
            other.hold(1).release()
            take(receiver, number, row)

        monkeypatch.setattr(Receiver, "take_part", take_after_the_other)
        one.hold(2).release()
    assert (one.n_fetched, other.n_fetched) == (2, 1)
    assert there(tmp_path) == {"00001", "00002"}


@pytest.mark.slow
def test_a_reader_that_hangs_in_a_cycle_does_not_keep_its_part(path: Path, tmp_path: Path) -> None:
    limit = 2 * max(sizes_of(path))
    gc.disable()
    try:
        with serving(Site(path)) as url:
            cache = open_cache(url, mirror=MirrorSettings(folder=tmp_path, limit=limit))
            for number in range(len(cache)):
                cycle: list[object] = [cache.locate(number)[0]]
                cycle.append(cycle)
                del cycle
    finally:
        gc.enable()
    assert bytes_of(tmp_path) <= limit


@pytest.mark.slow
def test_a_part_that_another_process_reads_is_not_removed(path: Path, tmp_path: Path) -> None:
    place = tmp_path / "held" / "00000"
    lease = PartLease(place)
    words = [sys.executable, "-c", ALONE, str(place)]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == "False\n"
    lease.release()
    lease.release()
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == "True\n"
    with exclusive(place) as free:
        assert free


def test_a_forked_child_does_not_keep_the_leases_of_its_parent(tmp_path: Path) -> None:
    """Workers of a data loader are forked, and live longer than the parts that were open at that time."""
    place, gate = tmp_path / "held" / "00000", Gate(1)
    lease = PartLease(place)
    child = Child(gate.pass_through)
    gate.wait()
    with exclusive(place) as is_free:
        assert not is_free
    lease.release()
    with exclusive(place) as is_free:
        assert is_free
    gate.open()
    child.wait()
    gate.close()


def test_a_forked_child_does_not_release_the_leases_of_its_parent(tmp_path: Path) -> None:
    place = tmp_path / "held" / "00000"
    lease = PartLease(place)
    Child(lease.release).wait()
    with exclusive(place) as is_free:
        assert not is_free
    lease.release()


def test_a_child_forked_while_a_part_is_removed_does_not_block_its_readers(tmp_path: Path) -> None:
    place, gate = tmp_path / "held" / "00000", Gate(1)
    with exclusive(place):
        child = Child(gate.pass_through)
        gate.wait()
    PartLease(place).release()
    gate.open()
    child.wait()
    gate.close()


def test_a_part_is_looked_for_once_however_short_the_retries(path: Path, tmp_path: Path) -> None:
    clock = iter(range(10_000))
    expired = RetryPolicy(budget=0.0, clock=lambda: next(clock))
    with serving(Site(path)) as url:
        mirror = MirrorSettings(folder=tmp_path, limit=2 * max(sizes_of(path)))
        MirrorStore(http.HttpStore(url), mirror, expired).hold(0).release()
    assert there(tmp_path) == {"00000"}


def test_a_limit_that_holds_no_two_parts_is_refused(path: Path, tmp_path: Path) -> None:
    with serving(Site(path)) as url, pytest.raises(ConfigError, match="--cache-limit 1,000") as caught:
        open_cache(url, mirror=MirrorSettings(folder=tmp_path, limit=1000))
    assert f"--cache-limit {2 * max(sizes_of(path)):,}" in str(caught.value.hint)


@pytest.mark.slow
def test_a_failing_server_is_survived(path: Path, tmp_path: Path) -> None:
    site = Site(path, due=lambda n: "drop" if n % 5 == 3 else None)
    with serving(site) as url:
        cache = open_cache(url, mirror=MirrorSettings(folder=tmp_path, limit=1 << 30))
        assert digests_of_all(cache) == digests_of_all(open_cache(path))


def test_a_server_that_stopped_working_is_reported(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "RetryPolicy", lambda: SHORT)
    site = Site(path)
    with serving(site) as url:
        cache = open_cache(url, mirror=MirrorSettings(folder=tmp_path, limit=1 << 30))
        site.due = lambda _: "503"
        with pytest.raises(Unreachable, match=r"answers 503 .*; retried for") as caught:
            digests_of_all(cache)
    assert caught.value.exit_code == 75


def test_it_is_reopened_in_another_process(path: Path, tmp_path: Path) -> None:
    with serving(Site(path)) as url:
        rebuild, words = open_cache(url, "train", mirror=MirrorSettings(folder=tmp_path, limit=1 << 30)).__reduce__()
        cache = rebuild(*words)
        assert cache[0].tokens.tolist() == open_cache(path, "train")[0].tokens.tolist()
        assert there(tmp_path)


def test_threads_that_need_one_part_fetch_it_once(path: Path, tmp_path: Path) -> None:
    site = Site(path)
    with serving(site) as url:
        cache = open_cache(url, mirror=MirrorSettings(folder=tmp_path, limit=1 << 30))
        threads = [threading.Thread(target=lambda: cache[0]) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert mirrored_store(url, MirrorSettings(folder=tmp_path, limit=1 << 30)).n_fetched == 1


ALONE = """
import sys
from pathlib import Path
from kdpipe.cache.mirror.leases import exclusive
with exclusive(Path(sys.argv[1])) as free:
    print(free)
"""
READ = """
import sys
from pathlib import Path
from kdpipe.cache import open_cache
from kdpipe.cache.stores.addresses import MirrorSettings
from support.reading import digests_of_all
cache = open_cache(sys.argv[1], mirror=MirrorSettings(folder=Path(sys.argv[2]), limit=int(sys.argv[3])))
assert digests_of_all(cache) == digests_of_all(open_cache(sys.argv[4]))
"""


@pytest.mark.slow
def test_processes_that_share_a_folder_and_little_room_read_every_row_right(path: Path, tmp_path: Path) -> None:
    limit = 4 * max(sizes_of(path))
    tests = Path(__file__).parents[2]
    with serving(Site(path)) as url:
        words = [sys.executable, "-c", READ, url, str(tmp_path), str(limit), str(path)]
        environment = os.environ | {"PYTHONPATH": str(tests)}
        children = [subprocess.Popen(words, env=environment) for _ in range(3)]
        assert [child.wait(900) for child in children] == [0, 0, 0]
    assert bytes_of(tmp_path) <= limit


RACE = """
import random, sys
from pathlib import Path
from kdpipe.cache import open_cache
from kdpipe.cache.stores.addresses import MirrorSettings
from support.reading import digest_of
far = open_cache(sys.argv[1], mirror=MirrorSettings(folder=Path(sys.argv[2]), limit=int(sys.argv[3])))
here = open_cache(sys.argv[4])
order = random.Random(int(sys.argv[5])).choices(range(len(here)), k=40)
for i in order:
    assert digest_of(far, i) == digest_of(here, i), i
"""


@pytest.mark.slow
def test_parts_are_evicted_under_several_readers_and_every_row_is_the_same(path: Path, tmp_path: Path) -> None:
    """Room for two parts of four, three processes that read in random orders: each evicts what others want next."""
    limit = 2 * max(sizes_of(path))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    site = Site(path)
    with serving(site) as url:
        words = [sys.executable, "-c", RACE, url, str(tmp_path), str(limit), str(path)]
        children = [subprocess.Popen([*words, str(seed)], env=environment) for seed in range(3)]
        assert [child.wait(900) for child in children] == [0, 0, 0]
    fetched = [requested for requested in site.requested if "sequences.arrow" in requested]
    assert len(fetched) > 2 * len(sizes_of(path)), "parts were hardly evicted: this has shown nothing"
    # What two processes brought last, each may have held when the other looked for too many parts.
    assert bytes_of(tmp_path) <= limit + 2 * max(sizes_of(path))
