"""The deep level, from inside: decodes parts and checks every row, in a process of its own.

In: a path or URL as the only argument, part numbers on stdin. Out: one JSON line a part, a list of problems.
Before it: `deep.py` starts it. After it: nothing. Data of strangers are decoded here, under limits on memory and
processor time.
"""

import json
import os
import sys
from collections.abc import Iterator

import numpy as np

from kdpipe.cache import layout
from kdpipe.cache.decode import Decoder
from kdpipe.cache.part_files import part_problem, read_part_record
from kdpipe.cache.part_reader import PartReader
from kdpipe.cache.reader import load_manifest
from kdpipe.cache.rows import Rows
from kdpipe.cache.second_reader import disagreements
from kdpipe.cache.statistics import StatisticsSum
from kdpipe.cache.store import open_store
from kdpipe.cache.tables import read_table
from kdpipe.cache.verify.rows import broken_rules
from kdpipe.schemas.errors import CacheDamaged
from kdpipe.schemas.part import PartRecord
from kdpipe.schemas.report import Problem

BLOCK_ROWS = 1 << 14
# Far above any vocabulary's longest entry.
MAX_TOKEN_BYTES = 1 << 16
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


class Parts:
    """The parts of a cache, each for itself: what is wrong with the index or with another part stops nobody."""

    def __init__(self, url: str) -> None:
        self.store = open_store(url)
        self.manifest = load_manifest(self.store)
        self._decoder: Decoder | None = None

    def open(self, number: int) -> PartReader:
        """A part; the tables are those that the first one opened was made with, as the fast level has seen."""
        if self._decoder is None:
            records = self.record(number).tables
            tables = {table.name: read_table(self.store, table, records) for table in self.manifest.tables}
            self._decoder = Decoder(self.manifest, tables["ids_by_rank"])
        return PartReader(self.store, self.manifest, self._decoder, number, None)

    def record(self, number: int) -> PartRecord:
        """The record of a part."""
        return read_part_record(self.store, self.manifest, number, None)[0]


def check_part(parts: Parts, number: int) -> list[Problem]:
    """Every problem of a part that decoding shows."""
    try:
        return [part_problem(number, layout.TARGETS, what) for what in _problems(parts, parts.open(number))]
    except CacheDamaged as error:
        return [part_problem(number, "", error.message)]


def _problems(parts: Parts, part: PartReader) -> Iterator[str]:
    manifest, record = parts.manifest, part.record
    sums = StatisticsSum(manifest)
    n_positions = n_exact = n_draws = first = 0
    starts = part.sequences.row_starts
    while first < len(part.sequences):
        end = max(first + 1, int(starts.searchsorted(starts[first] + BLOCK_ROWS, side="right")) - 1)
        rows = part.rows(first, end)
        for what in broken_rules(rows, manifest):
            yield f"sequences {first} to {end - 1}: {what}"
        yield from _displaced(part, rows, first, end)
        n_positions += int(rows.loss_mask.sum())
        n_exact, n_draws = n_exact + int(rows.n_exact.sum()), n_draws + int((rows.count - rows.n_exact).sum())
        sums.add_rows(rows)
        first = end
    if (n_positions, n_exact, n_draws) != (record.n_positions, record.n_exact, record.n_draws):
        yield f"{n_positions:,} positions and {n_exact + n_draws:,} entries are there, part.json counts otherwise"
    yield from sums.disagreements(record)
    yield from part.check_rest()
    if any(
        ((lengths < 0) | (lengths > MAX_TOKEN_BYTES)).any() for lengths in map(part.token_bytes, range(len(starts) - 1))
    ):
        yield f"a token is longer than {MAX_TOKEN_BYTES:,} bytes"
    yield from disagreements(parts.store.url, part)


def _displaced(part: PartReader, rows: Rows, first: int, end: int) -> Iterator[str]:
    """Sequences whose entries begin elsewhere than their counts say: read one by one, they would be refused."""
    places = part.sequences
    bounds = places.row_starts[first : end + 1] - places.row_starts[first]
    for name, counts, starts in (
        ("exact", rows.n_exact, places.exact_starts),
        ("draw", rows.count - rows.n_exact, places.draw_starts),
    ):
        due = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])[bounds]
        if not np.array_equal(due, starts[first : end + 1] - starts[first]):
            yield f"sequences {first} to {end - 1}: {name}_start in {layout.SEQUENCES} is not what the counts add up to"


def main() -> int:
    """Check the parts whose numbers stand on stdin."""
    numbers = [int(word) for word in sys.stdin.read().split()]
    parts = Parts(sys.argv[1])
    largest = max((parts.record(number).n_bytes for number in numbers), default=0)
    limit_resources(4 * largest + sum(table.n_bytes for table in parts.manifest.tables) * 3)
    for number in numbers:
        try:
            problems = check_part(parts, number)
        except MemoryError:
            return os.EX_OSERR
        sys.stdout.write(json.dumps([problem.model_dump() for problem in problems]) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
