"""Which part a worker makes next: its own share first, then parts that other workers have not started.

In: a cache under construction, and which of n workers this is. Out: part numbers. There is no coordinator: a part that
two workers make is published once, and the second copy is dropped.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from kdpipe.cache.writing.writer import CacheWriter


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerShard:
    """Worker `index` of `count`, from 0."""

    index: int = 0
    count: int = 1


def part_numbers(cache: CacheWriter, shard: WorkerShard) -> Iterator[int]:
    """Part numbers in the order of making; parts in progress on another worker are left to it."""
    taken: set[int] = set()
    while free := sorted(set(cache.missing()) - cache.under_way() - taken):
        own = [number for number in free if number % shard.count == shard.index]
        # Others start with their lowest number, so take the highest.
        number = own[0] if own else free[-1]
        taken.add(number)
        yield number


def is_free(cache: CacheWriter, number: int) -> bool:
    """Whether a part that was taken some time ago is still missing and not in progress elsewhere."""
    return number in cache.missing() and number not in cache.under_way()
