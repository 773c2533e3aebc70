"""Prefetched steps are the requested steps, whatever was assumed; errors and ends are as they should be."""

import threading
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from kdpipe.cache import open_cache
from kdpipe.pipeline.batches import prefetch as ahead
from kdpipe.pipeline.batches.batch_order import ordering
from kdpipe.pipeline.batches.collate import BatchContents, make_batch
from kdpipe.pipeline.batches.micro_batch import MicroBatch
from kdpipe.pipeline.batches.prefetch import StepLoader, loading_threads
from kdpipe.schemas.errors import CacheDamaged, Incompatible
from support.batches import equal_batches, equal_steps
from support.tiny import SMALL, flip_bit, make_cache

WANTS = BatchContents(targets=True, statistics=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ahead") / "cache"
    make_cache(folder, SMALL)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("load_ahead", [1, 3, 50])
def test_a_step_is_what_its_places_say_whatever_came_before(path: Path, threads: int, load_ahead: int) -> None:
    cache = open_cache(path, "train")
    orders = {name: ordering(cache, name, 7) for name in ("shuffled", "entropy", "length")}
    spans = [(0, 4), (4, 8), (8, 12), (2, 6), (90, 95), (95, 100), (0, 1), (0, 4)]
    with StepLoader(cache, WANTS, batch_size=3, ahead=load_ahead, threads=threads) as loader:
        for name in ("shuffled", "entropy", "length", "shuffled"):
            for begin, end in spans:
                step = loader.take(begin, end, orders[name])
                assert (step.begin, step.end) == (begin, end)
                line = orders[name].at(np.arange(begin, end)).tolist()
                assert [n for batch in step.batches for n in batch.numbers] == line
                assert [len(batch.numbers) for batch in step.batches] == [3] * ((end - begin) // 3) + (
                    [(end - begin) % 3] if (end - begin) % 3 else []
                )
                for batch in step.batches:
                    equal_batches(batch, make_batch(cache, batch.numbers, WANTS))


def test_prefetched_items_are_made_before_they_are_requested(path: Path) -> None:
    cache = open_cache(path, "train")
    order = ordering(cache, "shuffled", 0)
    with StepLoader(cache, WANTS, batch_size=2, ahead=4) as loader:
        for step in range(20):
            loader.take(4 * step, 4 * step + 4, order)
        assert loader.n_missed == 2
        loader.take(400, 404, order)
        assert loader.n_missed == 4


def test_prefetching_stays_within_its_limit(path: Path) -> None:
    cache = open_cache(path, "train")
    made: list[tuple[int, ...]] = []

    def counted(*args: object, **options: object) -> MicroBatch:
        made.append(args[1])  # type: ignore[arg-type]
        return make_batch(*args, **options)  # type: ignore[arg-type]

    with mock.patch.object(ahead, "make_batch", counted):
        loader = StepLoader(cache, WANTS, batch_size=1, ahead=2)
        loader.take(0, 3, ordering(cache, "shuffled", 0))
        loader._executor.shutdown(wait=True)
    assert len(made) == 3 + 2


def test_waiting_is_measured(path: Path) -> None:
    cache = open_cache(path, "train")
    order = ordering(cache, "shuffled", 0)
    held = threading.Event()

    def late(*args: object, **options: object) -> MicroBatch:
        held.wait()
        return make_batch(*args, **options)  # type: ignore[arg-type]

    with mock.patch.object(ahead, "make_batch", late), StepLoader(cache, WANTS, batch_size=2) as loader:
        threading.Timer(0.05, held.set).start()
        start = time.perf_counter()
        loader.take(0, 2, order)
        assert 0 < loader.waited_seconds <= time.perf_counter() - start


def test_damage_reaches_the_one_who_asks_in_the_readers_words(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    make_cache(folder, SMALL)
    shard = folder / "parts/00001/targets.zarr/id/c/0"
    flip_bit(shard, 40)
    cache = open_cache(folder, "train")
    order = ordering(cache, "shuffled", 0)
    first = sum(cache.sequences_by_part[:1])
    with StepLoader(cache, WANTS, batch_size=1, ahead=8) as loader:
        met = []
        for place in range(len(cache)):
            number = int(order.at([place])[0])
            try:
                loader.take(place, place + 1, order)
            except CacheDamaged as error:
                met.append(number)
                assert "parts/00001" in error.message
                assert "id" in error.message
        assert met
        assert all(first <= number < first + cache.sequences_by_part[1] for number in met)
    with StepLoader(cache, BatchContents(), batch_size=1) as loader:
        loader.take(0, len(cache), order)  # tokens are whole


def test_a_loader_ends_its_threads(path: Path) -> None:
    cache = open_cache(path, "train")
    before = set(threading.enumerate())
    with StepLoader(cache, WANTS, batch_size=2, threads=3) as loader:
        loader.take(0, 12, ordering(cache, "shuffled", 0))
        assert set(threading.enumerate()) - before
    assert set(threading.enumerate()) <= before


def test_what_is_not_there_is_refused_before_any_thread_starts(tmp_path: Path, path: Path) -> None:
    before = set(threading.enumerate())
    with pytest.raises(Incompatible, match="no states of rows of layer 77"):
        StepLoader(open_cache(path), BatchContents(hidden=(77,)), batch_size=1)
    assert set(threading.enumerate()) == before


def test_the_same_sequence_may_come_twice_in_a_step(path: Path) -> None:
    cache = open_cache(path, "validation")
    order = ordering(cache, "length", 0)
    with StepLoader(cache, WANTS, batch_size=len(cache)) as loader:
        step = loader.take(0, 3 * len(cache), order)
        equal_steps(step, loader.take(0, 3 * len(cache), order))
    assert len(step.batches) == 3


def test_a_few_threads_load_and_one_cpu_is_left_to_the_loop() -> None:
    assert [loading_threads(n) for n in (1, 2, 3, 5, 64)] == [1, 1, 2, 4, 4]
