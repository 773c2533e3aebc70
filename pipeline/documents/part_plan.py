"""The plan: parts of even size, from the sizes of documents before anything is tokenized.

In: the sizes of documents by split, and tokens per byte. Out: `CachePlan`.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from kdpipe.pipeline.documents.corpus_index import ADDED_TOKENS
from kdpipe.schemas.cache_plan import MAX_PART_ROWS, CachePlan, SplitPlan
from kdpipe.schemas.choices import SplitName

Longs = npt.NDArray[np.int64]
# Many parts distribute evenly over workers and lose little work in a crash; tiny ones are slow to read.
PARTS, MIN_PART_ROWS = 64, 1 << 15
# Planned rows are estimated from bytes, so this threshold includes all caches of 20 million positions or more. In their
# parts the ids (15.6 bytes per row, standard profile) and the row columns (7.7) take 16 MB each.
MANY_ROWS, LARGE_ROWS = 1 << 24, 5 << 19


def make_plan(
    sizes: Mapping[SplitName, npt.NDArray[np.uint32]],
    tokens_per_byte: float,
    length: int,
    packed: bool,
    part_rows: int | None = None,
    most_tokens: int | None = None,
    duplicates: Mapping[SplitName, int] | None = None,
) -> CachePlan:
    """Parts of about `rows_per_part` or `part_rows` rows, and at most `MAX_PART_ROWS`.

    At most `most_tokens` are used per document. `duplicates` counts by split; None if unknown.
    """
    most = most_tokens or MAX_PART_ROWS
    expected = {split: np.minimum(n_bytes * tokens_per_byte + 1, most) for split, n_bytes in sizes.items()}
    largest = {split: np.minimum(n_bytes.astype(np.int64) + ADDED_TOKENS, most) for split, n_bytes in sizes.items()}
    target = part_rows or rows_per_part(sum(float(rows.sum()) for rows in expected.values()))
    splits = tuple(
        SplitPlan(
            name=split,
            bounds=_bounds(expected[split], largest[split], target),
            duplicates=None if duplicates is None else duplicates[split],
        )
        for split in sizes
        if len(sizes[split])
    )
    return CachePlan(splits=splits, sequence_length=length, packed=packed)


def rows_per_part(n_rows: float) -> float:
    """Target rows per part: 1/64 of all, at least 32 k; 2.6 M for large caches."""
    return LARGE_ROWS if n_rows >= MANY_ROWS else max(n_rows / PARTS, MIN_PART_ROWS)


def _bounds(expected: npt.NDArray[np.float64], most: Longs, target: float) -> tuple[int, ...]:
    """The first documents of parts: each part takes an even share of the rest, within its maximal size."""
    filled, largest = np.cumsum(expected), np.cumsum(most)
    # A part ends before the first document whose middle is beyond its share.
    middles = filled - expected / 2
    bounds = [0]
    while bounds[-1] < len(expected):
        first = bounds[-1]
        done, taken = (float(filled[first - 1]), int(largest[first - 1])) if first else (0.0, 0)
        left = float(filled[-1]) - done
        wanted = int(np.searchsorted(middles, done + left / max(1, round(left / target)), "left"))
        allowed = int(np.searchsorted(largest, taken + MAX_PART_ROWS, "right"))
        bounds.append(max(min(wanted, allowed), first + 1))
    return tuple(bounds)
