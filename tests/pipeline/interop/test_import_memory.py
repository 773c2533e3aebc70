"""The memory of an import: a part and a few rows at a time, whatever the size of the source.

Measured in children of their own: what Python and numpy allocate at their peak.
"""

import sys
import tracemalloc
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from kdpipe.cache.format.number_lists import NumberLists
from kdpipe.cache.parts import arrow_files
from kdpipe.cache.parts.arrow_files import lists_writer
from kdpipe.pipeline import import_cache as importing
from support.children import in_child
from support.interop_sources import imported, word_tokenizer

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks")

N_IDS, K, TOKENS = 100, 32, 200
ENTRIES_PER_PART = 1 << 17
BYTES_AN_ENTRY = 8


def write_source(path: Path, n_rows: int) -> Path:
    """Rows in one row group, so that nothing but reading in turn keeps them out of memory."""
    rng = np.random.default_rng(0)
    types = {"tokens": ("int32", 1), "ids": ("int32", 2), "logprobs": ("float32", 2)}
    counts = np.full(TOKENS, K, np.int64)
    values = np.log(np.arange(K, 0, -1) / 1000).astype(np.float32)
    rows = [
        {
            "tokens": rng.integers(0, N_IDS, TOKENS),
            "ids": NumberLists(np.concatenate([rng.permutation(N_IDS)[:K] for _ in range(TOKENS)]), counts),
            "logprobs": NumberLists(np.tile(values, TOKENS), counts),
        }
        for _ in range(n_rows)
    ]
    with path.open("wb") as file, lists_writer(file, types, {}) as write:
        write(rows)
    return path


def peak_bytes(folder: Path, n_rows: int, words: Path) -> int:
    """What an import of so many rows allocates at its peak."""
    source = write_source(folder / f"{n_rows}.parquet", n_rows)

    def work() -> str:
        settings = {"source_format": "topk", "tokenizer": str(words), "tail": "rest"}
        imported(source=str(source), out=str(folder / f"{n_rows}-first"), limit=2, **settings)
        tracemalloc.start()
        report = imported(source=str(source), out=str(folder / f"{n_rows}-cache"), **settings)
        assert report.parts == -(-n_rows * TOKENS * K // ENTRIES_PER_PART)
        return str(tracemalloc.get_traced_memory()[1])

    with (
        mock.patch.object(arrow_files, "BATCH_BYTES", 1 << 20),
        mock.patch.object(importing, "MAX_ENTRIES_PER_PART", ENTRIES_PER_PART),
    ):
        ended = in_child(work)
    assert ended.code == 0, ended.output
    return int(ended.output)


@pytest.mark.slow
def test_memory_hardly_grows_with_a_source_four_times_as_long(tmp_path: Path) -> None:
    words = word_tokenizer(tmp_path / "words", N_IDS)
    short, long = 80, 320
    more = peak_bytes(tmp_path, long, words) - peak_bytes(tmp_path, short, words)
    assert more < (long - short) * TOKENS * K * BYTES_AN_ENTRY / 16
