"""Check of draws: how many of them are among the teacher's most probable ids, and how many are expected to be.

In: targets of a document from a cache, and the teacher's most probable ids at the same rows. Out: `DrawCounts`, to be
added up. Single draws cannot be compared, since which id a random number selects depends on the last bits of the masses
before it; shares can.
"""

import math
from dataclasses import dataclass

import numpy as np

from kdpipe.cache.format.ragged import draw_mask
from kdpipe.cache.format.rows import Block
from kdpipe.pipeline.audit.teacher_differences import DocumentPredictions, Doubles
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.target_kinds import TopK

# Listed ids, at most a quarter of all: uniform draws would rarely be among them.
LISTED = 256
# A smaller tail is mostly rounding.
LEAST_TAIL = 1e-3
# A difference above this many standard deviations plus this share for rounding is not chance.
DEVIATIONS, ROUNDING_SHARE = 6.0, 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawCounts:
    """Draws, those among the listed ids, and the expected number of the latter with an upper bound of its variance."""

    n: float = 0.0
    listed: float = 0.0
    expected: float = 0.0
    variance: float = 0.0

    def __add__(self, other: "DrawCounts") -> "DrawCounts":
        return DrawCounts(
            n=self.n + other.n,
            listed=self.listed + other.listed,
            expected=self.expected + other.expected,
            variance=self.variance + other.variance,
        )

    @property
    def is_plausible(self) -> bool:
        """Whether chance explains the difference."""
        return abs(self.listed - self.expected) <= DEVIATIONS * math.sqrt(self.variance) + ROUNDING_SHARE * self.n


def listing(vocabulary_size: int) -> TopK:
    """The target that lists the teacher's most probable ids."""
    return TopK(k=max(1, min(LISTED, vocabulary_size // 4)))


def count_draws(block: Block, listed: DocumentPredictions, log_z: Doubles | None, manifest: Manifest) -> DrawCounts:
    """Count a document's draws; `log_z` is the teacher's at the temperature of the draws, None at 1.

    Both kinds draw an id of the tail in proportion to its probability. Draws of one row depend on each other: the
    variance assumes that all draws of a row fall on the same side.
    """
    n_rows, n_ids = len(block.n_exact), manifest.vocabulary_size
    n_exact, n_draws = block.n_exact.astype(np.int64), block.n_draws.astype(np.int64)
    is_draw = draw_mask(n_exact, n_draws)
    rows = np.repeat(np.arange(n_rows), n_exact + n_draws)
    keys = rows * n_ids + block.ids
    listed_p = np.exp(listed.logprobs / manifest.targets.target_temperature)
    if log_z is not None:
        listed_p *= np.exp(-log_z[listed.rows])
    is_exact = np.isin(listed.keys, keys[~is_draw])
    exact = np.bincount(listed.rows, listed_p * is_exact, minlength=n_rows)
    share = np.bincount(listed.rows, listed_p * ~is_exact, minlength=n_rows)
    times = np.ones(int(is_draw.sum())) if block.times is None else block.times.astype(np.float64)
    n = np.bincount(rows[is_draw], times, minlength=n_rows)
    is_listed = np.isin(keys[is_draw], listed.keys)
    n_listed = np.bincount(rows[is_draw], times * is_listed, minlength=n_rows)
    counted = (n > 0) & (1 - exact > LEAST_TAIL)
    n, n_listed, chance = n[counted], n_listed[counted], np.minimum(share[counted] / (1 - exact[counted]), 1.0)
    return DrawCounts(
        n=float(n.sum()),
        listed=float(n_listed.sum()),
        expected=float((n * chance).sum()),
        variance=float((n * n * chance * (1 - chance)).sum()),
    )
