"""Ranges of long texts: what is held out for validation where the share asked for is less than one document.

In: the sizes of documents and the share asked for. Out: how many ranges of each document are held out, and where a text
is cut. Ranges are spread evenly over a text, and what is left between them stays as long as it can be: the teacher sees
no text from beyond a cut. The result depends on the data and the share alone.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

# Of what is held out: a teacher predicts little from less text, and more ranges than validation needs cost context.
LEAST_BYTES, MOST_RANGES = 1 << 10, 20
# A shorter document is not cut for the sake of a single range.
LONG_BYTES = 1 << 14
# Where a text is best cut: behind a paragraph, a line or a word.
SEAMS = ("\n\n", "\n", " ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Characters [start, end) of a text, and whether they are held out for validation."""

    start: int
    end: int
    held_out: bool


def ranges_to_hold_out(sizes: npt.NDArray[np.uint32], share: float) -> npt.NDArray[np.int64]:
    """How many ranges of each document are held out: as many as its share fills. Of other long documents the longest
    have one each, until their share is held out; at least one is."""
    n_ranges: npt.NDArray[np.int64] = np.minimum(sizes * share // LEAST_BYTES, MOST_RANGES).astype(np.int64)
    others = np.sort(sizes[(n_ranges == 0) & (sizes >= LONG_BYTES)])
    n_more = max(int(others.sum(dtype=np.int64) * share // LEAST_BYTES), 0 if n_ranges.any() else 1)
    if n_more and len(others):
        # Equal documents are equally long: they are cut alike.
        n_ranges[(n_ranges == 0) & (sizes >= others[-n_more])] = 1
    return n_ranges


def ranges_of(text: str, n_held_out: int, share: float) -> list[Range]:
    """A text cut into ranges, so many of which are held out; together they are the text."""
    if not n_held_out:
        return [Range(start=0, end=len(text), held_out=False)]
    share = max(share, min(0.5, n_held_out * LEAST_BYTES / len(text.encode())))
    stretch = len(text) / n_held_out
    reach = int(min(share, 1 - share) * stretch / 2)
    cuts = [0]
    for i in range(n_held_out):
        for side in (-1, 1):
            cuts.append(_seam(text, int(stretch * (i + 0.5 + side * share / 2)), reach))
    cuts.append(len(text))
    return [
        Range(start=start, end=end, held_out=bool(i % 2))
        for i, (start, end) in enumerate(pairwise(cuts))
        if start < end
    ]


def _seam(text: str, place: int, reach: int) -> int:
    """The end of the first paragraph from a place on, of a line or of a word; the place where none is within reach."""
    for seam in SEAMS:
        found = text.find(seam, place, place + reach)
        if found >= 0:
            return found + len(seam)
    return place
