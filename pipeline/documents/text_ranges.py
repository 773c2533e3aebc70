"""Ranges of long texts, held out for validation if the validation share is less than one document.

In: the sizes of documents and the share. Out: the number of held-out ranges per document, and the cuts of a text.
Held-out ranges are spread evenly over a text, and the ranges between them are as long as possible, since the teacher
has no context across a cut. The result depends on the data and the share alone.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

# Of held-out ranges: shorter ones have too little context, and more of them cost training context.
MIN_RANGE_BYTES, MAX_RANGES = 1 << 10, 20
# Shorter documents are not cut for a single range.
LONG_BYTES = 1 << 14
# A text is cut after a paragraph, else after a line, else after a word.
SEAMS = ("\n\n", "\n", " ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Characters [start, end) of a text, and whether they are held out for validation."""

    start: int
    end: int
    held_out: bool


def ranges_to_hold_out(sizes: npt.NDArray[np.uint32], share: float) -> npt.NDArray[np.int64]:
    """The number of held-out ranges per document: as many as its share fills. The longest of the other long documents
    have one each, until their share is held out; at least one range is held out in all."""
    n_ranges: npt.NDArray[np.int64] = np.minimum(sizes * share // MIN_RANGE_BYTES, MAX_RANGES).astype(np.int64)
    others = np.sort(sizes[(n_ranges == 0) & (sizes >= LONG_BYTES)])
    n_more = max(int(others.sum(dtype=np.int64) * share // MIN_RANGE_BYTES), 0 if n_ranges.any() else 1)
    if n_more and len(others):
        # Equal documents have equal sizes, so they are cut alike.
        n_ranges[(n_ranges == 0) & (sizes >= others[-n_more])] = 1
    return n_ranges


def ranges_of(text: str, n_held_out: int, share: float) -> list[Range]:
    """Cut a text into ranges, `n_held_out` of which are held out; their concatenation is the text."""
    if not n_held_out:
        return [Range(start=0, end=len(text), held_out=False)]
    share = max(share, min(0.5, n_held_out * MIN_RANGE_BYTES / len(text.encode())))
    stretch = len(text) / n_held_out
    reach = int(min(share, 1 - share) * stretch / 2)
    cuts = [0]
    for i in range(n_held_out):
        for side in (-1, 1):
            cuts.append(_natural_end(text, int(stretch * (i + 0.5 + side * share / 2)), reach))
    cuts.append(len(text))
    return [
        Range(start=start, end=end, held_out=bool(i % 2))
        for i, (start, end) in enumerate(pairwise(cuts))
        if start < end
    ]


def _natural_end(text: str, place: int, reach: int) -> int:
    """The end of the first paragraph, line or word within reach, else `place`."""
    for seam in SEAMS:
        start = text.find(seam, place, place + reach)
        if start >= 0:
            return start + len(seam)
    return place
