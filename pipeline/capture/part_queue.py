"""Which part a worker makes next: its own share first, then what others left.

In: a cache under construction, and which of n workers this is. Out: part numbers, until nothing is left to do. Nobody
coordinates: a part that two workers make is published once, and the loser's work is dropped.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from kdpipe.cache.writing.writer import CacheWriter


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerShard:
    """Worker `index` of `count`, from 0."""

    index: int = 0
    count: int = 1


def turns(cache: CacheWriter, shard: WorkerShard) -> Iterator[int]:
    """Part numbers, each when its turn has come; parts that another worker is at are left to it."""
    given: set[int] = set()
    while free := sorted(set(cache.missing()) - cache.under_way() - given):
        own = [number for number in free if number % shard.count == shard.index]
        # From the far end of what others have to do: they begin at the near one.
        number = own[0] if own else free[-1]
        given.add(number)
        yield number


def is_free(cache: CacheWriter, number: int) -> bool:
    """Whether a part that was given some time ago is still for this worker to make."""
    return number in cache.missing() and number not in cache.under_way()
