"""The plan: parts of even size, found from the sizes of documents before anything is tokenized.

In: the sizes of documents by split, and tokens a byte. Out: `CachePlan`.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from kdpipe.pipeline.documents.corpus_index import MORE_TOKENS
from kdpipe.schemas.cache_plan import MAX_PART_ROWS, CachePlan, SplitPlan
from kdpipe.schemas.choices import SplitName

Longs = npt.NDArray[np.int64]
# Enough parts to share out and little lost by a crash, against files that are worth opening (DESIGN 3).
PARTS, LEAST_ROWS = 64, 1 << 15
# Planned sizes are guessed from bytes: caches that turn out to have 20 million positions are surely among those from
# here on. In their parts the ids (15.6 bytes a row, standard profile) and the row columns (7.7) fill 16 MB each.
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
    """Parts as large as `rows_of_a_part` says, or of `part_rows`; none can have more than a part may have.

    Of a document no more than `most_tokens` are read. `duplicates` are counted by split, None where unknown.
    """
    most = most_tokens or MAX_PART_ROWS
    expected = {split: np.minimum(each * tokens_per_byte + 1, most) for split, each in sizes.items()}
    largest = {split: np.minimum(each.astype(np.int64) + MORE_TOKENS, most) for split, each in sizes.items()}
    target = part_rows or rows_of_a_part(sum(float(each.sum()) for each in expected.values()))
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


def rows_of_a_part(n_rows: float) -> float:
    """How many rows a part is to have, of so many in all: 1/64, at least 32 k, and 2.6 M of many."""
    return LARGE_ROWS if n_rows >= MANY_ROWS else max(n_rows / PARTS, LEAST_ROWS)


def _bounds(expected: npt.NDArray[np.float64], most: Longs, target: float) -> tuple[int, ...]:
    """Documents at which parts begin: each takes its even share of what is left, if its largest size allows it."""
    filled, largest = np.cumsum(expected), np.cumsum(most)
    # A part ends at the document whose middle its share ends before.
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
