"""Which part a worker makes next: its own share first, then what others left.

In: a cache under construction, and which of n workers this is. Out: part numbers, until nothing is left to do.
Before it: `kdpipe.cache.writer`. After it: `cache_teacher.py`. Nobody coordinates: a part that two workers make is
published once, and the loser's work is dropped.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from kdpipe.cache.writer import CacheWriter


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Worker `index` of `count`, from 0."""

    index: int = 0
    count: int = 1


def turns(cache: CacheWriter, shard: Shard) -> Iterator[int]:
    """Part numbers, each when its turn has come; parts that another worker is at are left to it."""
    given: set[int] = set()
    while True:
        under_way = cache.under_way()
        missing = [number for number in cache.missing() if number not in given]
        own = [number for number in missing if number % shard.count == shard.index]
        others = [number for number in missing if number % shard.count != shard.index and number not in under_way]
        # From the far end of what others have to do: they begin at the near one.
        if not own and not others:
            return
        number = min(own, key=lambda n: (n in under_way, n)) if own else others[-1]
        given.add(number)
        yield number
