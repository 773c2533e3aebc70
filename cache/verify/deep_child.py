"""The deep level, from inside: decodes parts and checks every row, in a process of its own.

In: a path or URL as the only argument, part numbers on stdin. Out: one JSON line a part, a list of problems.
Before it: `deep.py` starts it. After it: nothing. Data of strangers are decoded here, under limits on memory and
processor time.
"""

import json
import os
import sys
from collections.abc import Iterator

from kdpipe.cache import layout
from kdpipe.cache.part_files import part_problem
from kdpipe.cache.part_reader import PartReader
from kdpipe.cache.reader import Cache, open_cache
from kdpipe.cache.second_reader import disagreements
from kdpipe.cache.statistics import StatisticsSum
from kdpipe.cache.verify.rows import broken_rules
from kdpipe.schemas.errors import CacheDamaged
from kdpipe.schemas.report import Problem

BLOCK_ROWS = 1 << 14
MEMORY_BYTES = 2 << 30
PROCESSOR_SECONDS = 3600


def limit_resources(extra_bytes: int) -> None:
    """Allow this process some memory beyond what it has, and an hour of processor time; Windows has no such limits."""
    if os.name == "nt":
        return
    import resource

    try:
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        now = 0
    if now:
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_BYTES + extra_bytes,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_SECONDS,) * 2)


def check_part(cache: Cache, number: int) -> list[Problem]:
    """Every problem of a part that decoding shows."""
    try:
        part = cache.part(number)
        return [part_problem(number, layout.TARGETS, what) for what in _problems(cache, part)]
    except CacheDamaged as error:
        return [part_problem(number, "", error.message)]


def _problems(cache: Cache, part: PartReader) -> Iterator[str]:
    manifest, record = cache.manifest, part.record
    sums = StatisticsSum(manifest)
    n_positions = n_exact = n_draws = first = 0
    starts = part.sequences.row_starts
    while first < len(part.sequences):
        end = max(first + 1, int(starts.searchsorted(starts[first] + BLOCK_ROWS, side="right")) - 1)
        rows = part.rows(first, end)
        for what in broken_rules(rows, manifest):
            yield f"sequences {first} to {end - 1}: {what}"
        n_positions += int(rows.loss_mask.sum())
        n_exact, n_draws = n_exact + int(rows.n_exact.sum()), n_draws + int((rows.count - rows.n_exact).sum())
        sums.add_rows(rows)
        first = end
    if (n_positions, n_exact, n_draws) != (record.n_positions, record.n_exact, record.n_draws):
        yield f"{n_positions:,} positions and {n_exact + n_draws:,} entries are there, part.json counts otherwise"
    yield from sums.disagreements(record)
    yield from part.check_rest()
    yield from disagreements(cache.url, part)


def main() -> int:
    """Check the parts whose numbers stand on stdin."""
    numbers = [int(word) for word in sys.stdin.read().split()]
    cache = open_cache(sys.argv[1], allow_partial=True, max_open_parts=1)
    largest = max((row.n_bytes for row in cache.parts), default=0)
    limit_resources(4 * largest + sum(table.n_bytes for table in cache.manifest.tables) * 3)
    for number in numbers:
        try:
            problems = check_part(cache, number)
        except MemoryError:
            return os.EX_OSERR
        sys.stdout.write(json.dumps([problem.model_dump() for problem in problems]) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
