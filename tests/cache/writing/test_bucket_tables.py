"""All tables of a cache behind a URL come from one worker, whatever other workers do at the same time."""

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import fsspec
import numpy as np
import pytest

from kdpipe.cache import layout
from kdpipe.cache.stores.fsspec_store import RemoteFolder
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.cache.verify import verify_cache
from kdpipe.cache.writing.bucket import BucketPublisher, create_bucket
from kdpipe.cache.writing.bucket_tables import TableSet
from kdpipe.cache.writing.writer import CacheWriter
from kdpipe.schemas.errors import CacheDamaged, CacheWriteError, KdpipeError
from support import tiny
from support.damage import RECIPES
from support.synthetic import synthetic_tables

URL = "memory://bucket/cache"
HASTY = RetryPolicy(budget=1.0, first=0.001, longest=0.002)
# Three tables: the ranks of ids, a projection, and the output head.
RECIPE = RECIPES["state"]
TABLES = synthetic_tables(RECIPE)
OTHERS = {name: values[::-1].copy() for name, values in TABLES.items()}
# Writes of a single worker: each table under a temporary name, the record that selects the set, the final names.
ASIDE = len(TABLES)
WRITES = 2 * len(TABLES) + 1


class Killed(KdpipeError):
    """The worker is gone."""


@pytest.fixture(autouse=True)
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    with tiny.unsynced():
        yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def worker() -> CacheWriter:
    return create_bucket(URL, tiny.manifest_of(RECIPE), HASTY)


def published_sets(writer: CacheWriter) -> set[str]:
    """The workers whose tables are published: more than one is a mixture."""
    workers = set[str]()
    assert writer.has_tables
    for name in TABLES:
        values = writer.table(name)
        workers |= {
            name_of_worker
            for name_of_worker, tables in (("first", TABLES), ("second", OTHERS))
            if np.array_equal(values, tables[name].astype(values.dtype))
        }
    return workers


def interrupting(monkeypatch: pytest.MonkeyPatch, at: int, act: Callable[[], None]) -> list[str]:
    """Call `act` once, before write number `at`; returns the names of all writes."""
    written: list[str] = []
    plain = {name: getattr(RemoteFolder, name) for name in ("create", "put", "remove")}

    def wrapped(name: str) -> Callable[..., Any]:
        def write(place: RemoteFolder, path: str, *data: Any) -> Any:
            written.append(f"{name} {path}")
            if len(written) == at + 1:
                for method, function in plain.items():
                    monkeypatch.setattr(RemoteFolder, method, function)
                act()
            return plain[name](place, path, *data)

        return write

    for name in plain:
        monkeypatch.setattr(RemoteFolder, name, wrapped(name))
    return written


def test_the_recipe_has_several_tables() -> None:
    assert len(TABLES) > 1
    assert all(not np.array_equal(TABLES[name], OTHERS[name]) for name in TABLES)


@pytest.mark.parametrize("at", range(WRITES + 1))
def test_another_worker_at_any_moment_leaves_one_whole_set(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second publishes its own tables as a whole, between any two writes of the first."""
    first, second = worker(), worker()
    written = interrupting(monkeypatch, at, lambda: second.publish_tables(OTHERS))
    first.publish_tables(TABLES)
    if at == WRITES:
        assert len(written) == WRITES
        second.publish_tables(OTHERS)
    expected = {"second"} if at <= ASIDE else {"first"}
    assert published_sets(first) == published_sets(second) == published_sets(worker()) == expected


@pytest.mark.parametrize("at", range(WRITES))
def test_another_worker_completes_the_tables_of_one_killed_at_any_moment(
    at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die() -> None:
        raise Killed("killed")

    first = worker()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        interrupting(patch, at, die)
        first.publish_tables(TABLES)
    second = worker()
    assert not second.has_tables
    second.publish_tables(OTHERS)
    assert published_sets(second) == published_sets(worker()) == ({"second"} if at <= ASIDE else {"first"})


def test_two_workers_step_by_step_in_any_order_leave_one_whole_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every interleaving of the last temporary write, the record that selects a set, and the first final name."""
    for turns in set(itertools.permutations("aaabbb")):
        system = fsspec.filesystem("memory")
        system.store.clear()
        system.pseudo_dirs[:] = [""]
        writers = {"a": worker(), "b": worker()}
        steps = {who: _Steps(writers[who], tables) for who, tables in (("a", TABLES), ("b", OTHERS))}
        for who in "ab" * (ASIDE - 1):
            steps[who].step()
        for who in turns:
            steps[who].step()
        for who in steps:
            steps[who].finish()
        assert len(published_sets(writers["a"])) == 1, turns
        assert published_sets(writers["a"]) == published_sets(writers["b"]), turns


class _Steps:
    """A worker in a thread that waits before each write until `step` allows it."""

    def __init__(self, writer: CacheWriter, tables: Mapping[str, Any]) -> None:
        self._may, self._did = threading.Semaphore(0), threading.Semaphore(0)
        self._free = False
        assert isinstance(writer.publisher, BucketPublisher)
        place = writer.publisher.remote
        for name in ("create", "put"):
            setattr(place, name, self._waiting(getattr(place, name)))
        self._thread = threading.Thread(target=lambda: self._work(writer, tables))
        self._thread.start()

    def _waiting(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def waiting(*data: Any) -> Any:
            if not self._free:
                self._may.acquire()
            try:
                return write(*data)
            finally:
                self._did.release()

        return waiting

    def _work(self, writer: CacheWriter, tables: Mapping[str, Any]) -> None:
        writer.publish_tables(tables)
        self._did.release()

    def step(self) -> None:
        """Allow one write, if any is left."""
        self._may.release()
        while not self._did.acquire(timeout=0.1) and self._thread.is_alive():
            pass

    def finish(self) -> None:
        """Allow all remaining writes."""
        self._free = True
        for _ in range(10):
            self._may.release()
        self._thread.join(timeout=900)
        assert not self._thread.is_alive()


def test_a_sealed_cache_has_no_temporary_tables(memory: fsspec.AbstractFileSystem) -> None:
    first, second = worker(), worker()
    first.publish_tables(TABLES)
    second.publish_tables(OTHERS)
    for number in first.missing():
        tiny.write_part(first, number, RECIPE)
    assert memory.exists(f"/bucket/cache/{layout.TABLE_SET}")
    first.seal()
    assert not [name for name in memory.find("/bucket/cache") if f"/{layout.WORK}/" in name]
    assert verify_cache(URL, "full").ok
    assert second.seal() == first.seal()


def test_a_late_worker_uses_the_tables_of_a_finished_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late, first = worker(), worker()

    def finish() -> None:
        first.publish_tables(TABLES)
        for number in first.missing():
            tiny.write_part(first, number, RECIPE)
        first.seal()

    interrupting(monkeypatch, ASIDE, finish)
    late.publish_tables(OTHERS)
    assert published_sets(late) == {"first"}
    assert late.seal() == first.seal()
    assert verify_cache(URL, "full").ok


def test_mixed_tables_of_two_workers_are_refused(memory: fsspec.AbstractFileSystem) -> None:
    first, second = worker(), worker()
    second.publish_tables(OTHERS)
    for name in memory.find("/bucket/cache"):
        if layout.WORK in name or "output_head" in name:
            memory.rm(name)
    with pytest.raises(CacheWriteError, match=r"tables/.*\.bin .*tmp/tables\.json") as caught:
        first.publish_tables(TABLES)
    assert "delete tables/ and tmp/tables.json" in str(caught.value.hint)


def test_a_table_record_with_other_tables_is_refused(memory: fsspec.AbstractFileSystem) -> None:
    writer = worker()
    memory.pipe_file(f"/bucket/cache/{layout.TABLE_SET}", TableSet(tables={}).to_json())
    with pytest.raises(CacheDamaged, match=r"tmp/tables\.json .*\[\].*\['ids_by_rank', 'outp") as caught:
        writer.publish_tables(TABLES)
    assert caught.value.hint == "delete tmp/tables.json and run again"
