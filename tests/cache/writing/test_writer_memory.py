"""The memory of writing: chunks stream out, so that a part of any length takes little more than its open chunks.

Measured twice in children of their own: what Python allocates at its peak, and what the process grows by.
"""

import resource
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from support.children import in_child
from support.tiny import SMALL, begin_cache, part_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks")

RECIPE = replace(
    SMALL, documents={"train": 100}, documents_per_part=100, document_tokens=300, sequence_length=512, text=False
)
ROUNDS = 4
# What is kept of a document until its part ends, places, digest, columns and pooled states, spread over its rows.
# The codes of a row, were they kept too, take about 100 bytes.
KEPT_BYTES_PER_ROW = 16


def peak_bytes(path: Path, rounds: int) -> tuple[int, int, int]:
    """Rows written, and by how much writing them raised the peak of Python's memory and of the process."""

    def work() -> str:
        pairs = part_of(RECIPE, 0)
        writer = begin_cache(path, RECIPE)
        with writer.part(0) as part:
            part.add(*pairs[0])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        tracemalloc.start()
        writer = begin_cache(path.with_name(f"{path.name}-measured"), RECIPE)
        n_rows = 0
        with writer.part(0) as part:
            for _ in range(rounds):
                for sequence, block in pairs:
                    part.add(sequence, block)
                    n_rows += len(sequence.tokens)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        return f"{n_rows} {tracemalloc.get_traced_memory()[1]} {grown << 10}"

    ended = in_child(work)
    assert ended.code == 0, ended.output
    n_rows, traced, grown = map(int, ended.output.split())
    return n_rows, traced, grown


@pytest.mark.slow
def test_a_part_four_times_as_long_takes_hardly_more_memory(tmp_path: Path) -> None:
    short_rows, short_traced, short_grown = peak_bytes(tmp_path / "short", ROUNDS)
    long_rows, long_traced, long_grown = peak_bytes(tmp_path / "long", 4 * ROUNDS)
    assert long_rows == 4 * short_rows
    more_rows = long_rows - short_rows
    assert long_traced - short_traced < KEPT_BYTES_PER_ROW * more_rows
    assert long_grown - short_grown < 2 * KEPT_BYTES_PER_ROW * more_rows + (4 << 20)  # the allocator's own steps
