"""Tables of a cache behind a URL come whole from one worker, whatever others do at any moment meanwhile."""

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
from kdpipe.cache.writing.bucket_tables import TableSet
from kdpipe.cache.writing.bucket_writer import BucketWriter, create_bucket
from kdpipe.pipeline.synthetic import synthetic_tables
from kdpipe.schemas.errors import CacheDamaged, CacheWriteError, KdpipeError
from support import tiny
from support.damage import RECIPES

URL = "memory://bucket/cache"
HASTY = RetryPolicy(budget=1.0, first=0.001, longest=0.002)
# Three tables: the ranks of ids, a projection, and the output head.
RECIPE = RECIPES["state"]
TABLES = synthetic_tables(RECIPE)
OTHERS = {name: values[::-1].copy() for name, values in TABLES.items()}
# What a worker alone writes: each table aside, the record that picks the set, each table under its name.
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


def worker() -> BucketWriter:
    return create_bucket(URL, tiny.manifest_of(RECIPE), HASTY)


def sets_there(writer: BucketWriter) -> set[str]:
    """Whose tables are there: more than one name is a mixture."""
    found = set[str]()
    assert writer.has_tables
    for name in TABLES:
        values = writer.table(name)
        found |= {
            whose
            for whose, tables in (("first", TABLES), ("second", OTHERS))
            if np.array_equal(values, tables[name].astype(values.dtype))
        }
    return found


def interrupting(monkeypatch: pytest.MonkeyPatch, at: int, act: Callable[[], None]) -> list[str]:
    """Do something before the write of this number; all writes, by name. What is done then interrupts nothing."""
    written: list[str] = []
    plain = {name: getattr(RemoteFolder, name) for name in ("create", "put", "remove")}

    def wrapped(name: str) -> Callable[..., Any]:
        def write(place: RemoteFolder, path: str, *data: Any) -> Any:
            written.append(f"{name} {path}")
            if len(written) == at + 1:
                for each, function in plain.items():
                    monkeypatch.setattr(RemoteFolder, each, function)
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
    due = {"second"} if at <= ASIDE else {"first"}
    assert sets_there(first) == sets_there(second) == sets_there(worker()) == due


@pytest.mark.parametrize("at", range(WRITES))
def test_a_worker_that_is_killed_at_any_moment_leaves_what_another_completes(
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
    assert sets_there(second) == sets_there(worker()) == ({"second"} if at <= ASIDE else {"first"})


def test_two_workers_step_by_step_in_any_order_leave_one_whole_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every merge of the last write aside, the record that picks a set, and the first table that gets its name."""
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
        assert len(sets_there(writers["a"])) == 1, turns
        assert sets_there(writers["a"]) == sets_there(writers["b"]), turns


class _Steps:
    """A worker that writes when it is told to: a thread that waits before each write."""

    def __init__(self, writer: BucketWriter, tables: Mapping[str, Any]) -> None:
        self._may, self._did = threading.Semaphore(0), threading.Semaphore(0)
        self._free = False
        place = writer._place
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

    def _work(self, writer: BucketWriter, tables: Mapping[str, Any]) -> None:
        writer.publish_tables(tables)
        self._did.release()

    def step(self) -> None:
        """Let it do one write, if it has one left."""
        self._may.release()
        while not self._did.acquire(timeout=0.1) and self._thread.is_alive():
            pass

    def finish(self) -> None:
        """Let it do the rest."""
        self._free = True
        for _ in range(10):
            self._may.release()
        self._thread.join(timeout=900)
        assert not self._thread.is_alive()


def test_a_sealed_cache_has_no_tables_put_aside(memory: fsspec.AbstractFileSystem) -> None:
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


def test_a_worker_that_comes_when_all_is_done_and_tidied_adopts_what_is_there(
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
    assert sets_there(late) == {"first"}
    assert late.seal() == first.seal()
    assert verify_cache(URL, "full").ok


def test_tables_that_were_mixed_before_are_refused(memory: fsspec.AbstractFileSystem) -> None:
    """As a worker of another program may have left one."""
    first, second = worker(), worker()
    second.publish_tables(OTHERS)
    for name in memory.find("/bucket/cache"):
        if layout.WORK in name or "output_head" in name:
            memory.rm(name)
    with pytest.raises(CacheWriteError, match=r"is not of the set that tmp/tables\.json names: tables of two") as told:
        first.publish_tables(TABLES)
    assert str(told.value.hint).startswith("delete tables/ and tmp/tables.json there if no part is there yet")


def test_a_record_that_names_other_tables_is_refused(memory: fsspec.AbstractFileSystem) -> None:
    writer = worker()
    memory.pipe_file(f"/bucket/cache/{layout.TABLE_SET}", TableSet(tables={}).to_json())
    with pytest.raises(CacheDamaged, match=r"tmp/tables\.json names \[\], the manifest \['ids_by_rank', 'outp") as told:
        writer.publish_tables(TABLES)
    assert told.value.hint == "delete tmp/tables.json and run again"
