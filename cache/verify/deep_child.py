"""The deep level, child side: decodes parts and checks every row, in a process of its own.

In: a local path and memory limits as arguments, part numbers on stdin, one per line. Out: JSON lines: "ready", then a
list of problems for each part; an object instead is an error that ends the work. `deep.py` starts it. Untrusted data is
decoded here, under limits on memory and processor time.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from hashlib import sha256

import numpy as np

from kdpipe.cache import layout
from kdpipe.cache.catalog import load_manifest
from kdpipe.cache.format.decode import Decoder
from kdpipe.cache.format.invariants import MAX_TOKEN_BYTES, broken_rules
from kdpipe.cache.format.rows import Rows
from kdpipe.cache.format.statistics import StatisticsSum
from kdpipe.cache.parts.part_files import part_problem, read_part_record
from kdpipe.cache.parts.part_reader import PartReader
from kdpipe.cache.parts.sequences import DIGEST_BYTES
from kdpipe.cache.parts.tables import read_table
from kdpipe.cache.stores.dispatch import open_store
from kdpipe.cache.verify.children import end_with_parent
from kdpipe.cache.verify.copied import Copied, CopiedDocuments, in_words
from kdpipe.cache.verify.deep import OUT_OF_MEMORY, READY
from kdpipe.cache.verify.zarr_oracle import disagreements
from kdpipe.schemas.counts import counted
from kdpipe.schemas.errors import CacheDamaged, KdpipeError
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.part import PartRecord
from kdpipe.schemas.verify_report import Problem

BLOCK_ROWS = 1 << 14
# Per part: what six busy threads use within the timeout of deep.py.
PROCESSOR_SECONDS = 3600


def limit_memory(more_bytes: int) -> None:
    """Allow this process some memory beyond what it has; Windows and macOS have no such limit."""
    try:
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = now + more_bytes if hard == resource.RLIM_INFINITY else min(now + more_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def limit_processor_seconds(more: int) -> None:
    """Allow this process some processor time beyond what it has used; Windows has no such limit."""
    if os.name == "nt":
        return
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + more
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


class Parts:
    """The parts of a cache, opened independently: a damaged index or another damaged part does not matter.

    Only `copied` depends on earlier parts.
    """

    def __init__(self, url: str) -> None:
        self.store = open_store(url)
        self.manifest = load_manifest(self.store)
        self.copied = CopiedDocuments()
        self._decoder: Decoder | None = None

    def open(self, number: int) -> PartReader:
        """Open a part; all parts have the same tables, which the fast level has checked."""
        if self._decoder is None:
            records = self.record(number).tables
            tables = {table.name: read_table(self.store, table, records) for table in self.manifest.tables}
            self._decoder = Decoder(self.manifest, tables["ids_by_rank"])
        return PartReader(self.store, self.manifest, self._decoder, number, None)

    def record(self, number: int) -> PartRecord:
        return read_part_record(self.store, self.manifest, number, None)[0]


def check_part(parts: Parts, number: int) -> list[Problem]:
    """The problems of a part that decoding finds."""
    try:
        return [part_problem(number, layout.TARGETS, what) for what in _problems(parts, parts.open(number))]
    except CacheDamaged as error:
        return [part_problem(number, "", error.message.removeprefix(f"{layout.part_dir(number)}: "))]


def _problems(parts: Parts, part: PartReader) -> Iterator[str]:
    manifest, record = parts.manifest, part.record
    sums = StatisticsSum(manifest)
    n_positions = n_exact = n_draws = first = 0
    starts, copied = part.sequences.row_starts, list[Copied]()
    while first < len(part.sequences):
        end = max(first + 1, int(starts.searchsorted(starts[first] + BLOCK_ROWS, side="right")) - 1)
        rows = part.rows(first, end)
        for what in broken_rules(rows, manifest):
            yield f"sequences {first} to {end - 1}: {what}"
        yield from _misplaced_sequences(part, rows, first, end)
        yield from _wrong_digests(manifest, part, rows, first, end)
        copied += parts.copied.found(record.part, record.split, rows)
        n_positions += int(rows.loss_mask.sum())
        n_exact, n_draws = n_exact + int(rows.n_exact.sum()), n_draws + int((rows.count - rows.n_exact).sum())
        sums.add_rows(rows)
        first = end
    if (n_positions, n_exact, n_draws) != (record.n_positions, record.n_exact, record.n_draws):
        yield f"{n_positions:,} positions and {n_exact + n_draws:,} entries found, part.json states other counts"
    yield from in_words(copied)
    yield from sums.disagreements(record)
    yield from part.check_rest()
    if any(
        ((lengths < 0) | (lengths > MAX_TOKEN_BYTES)).any() for lengths in map(part.token_bytes, range(len(starts) - 1))
    ):
        yield f"a token is longer than {MAX_TOKEN_BYTES:,} bytes"
    yield from disagreements(parts.store.url, part)


def _misplaced_sequences(part: PartReader, rows: Rows, first: int, end: int) -> Iterator[str]:
    """Sequences whose entries do not start where the counts put them: single reads would fail."""
    places = part.sequences
    bounds = places.row_starts[first : end + 1] - places.row_starts[first]
    for name, counts, starts in (
        ("exact", rows.n_exact, places.exact_starts),
        ("draw", rows.count - rows.n_exact, places.draw_starts),
    ):
        expected = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])[bounds]
        if not np.array_equal(expected, starts[first : end + 1] - starts[first]):
            yield f"sequences {first} to {end - 1}: {name}_start in {layout.SEQUENCES} does not match the counts"


def _wrong_digests(manifest: Manifest, part: PartReader, rows: Rows, first: int, end: int) -> Iterator[str]:
    """Document digests that do not match the tokens; duplicates are recognized by them."""
    if all(split.duplicates is None for split in manifest.plan.splits if split.name == part.record.split):
        return
    ends = np.append(rows.document_starts[1:], len(rows))
    tokens = rows.tokens.astype("<u4")
    digests = [
        sha256(tokens[start:stop].tobytes()).digest()[:DIGEST_BYTES]
        for start, stop in zip(rows.document_starts, ends, strict=True)
    ]
    offsets = part.sequences.document_offsets
    stated = part.sequences.digests()[offsets[first] : offsets[end]]
    wrong = (stated != np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)).any(axis=1)
    if wrong.any():
        number = int(rows.documents[wrong][0])
        documents = counted(int(wrong.sum()), "document")
        yield f"digests of {documents} do not match the tokens, the first is of document {number:,}"


def main() -> int:
    """Check the parts whose numbers come on stdin, until it is closed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--memory-bytes", type=int, required=True)
    parser.add_argument("--largest-bytes", type=int, required=True)
    options = parser.parse_args()
    end_with_parent()
    try:
        parts = Parts(options.url)
        tables = sum(table.n_bytes for table in parts.manifest.tables)
        limit_memory(options.memory_bytes + 4 * options.largest_bytes + 3 * tables)
        _answer(READY)
        for line in sys.stdin:
            limit_processor_seconds(PROCESSOR_SECONDS)
            _answer([problem.model_dump() for problem in check_part(parts, int(line))])
    except MemoryError:
        return OUT_OF_MEMORY
    except KdpipeError as error:
        _answer({"message": error.message, "hint": error.hint, "exit_code": error.exit_code})
    return 0


def _answer(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
