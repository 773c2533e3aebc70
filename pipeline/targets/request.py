"""What the teacher predicts for every row of a cache."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kdpipe.cache.format.quantizers import Floats
from kdpipe.cache.format.rows import Bools
from kdpipe.schemas.targets import HiddenSpec, TargetSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRequest:
    """Targets and hidden states of every row; the same for a whole cache.

    `tables` are the fitted projections of `hidden`, by their names in the cache; `starts_word` marks the ids that start
    a new word, for the boundary scalar; `unigram` is the frequency of each id in the data, for fidelity.
    `fidelity_every` n compares every n-th position of a segment with its full distribution; 0 compares none.
    """

    targets: TargetSpec
    hidden: HiddenSpec
    vocabulary_size: int
    seed: int
    tables: Mapping[str, Floats] = field(default_factory=dict)
    starts_word: Bools | None = None
    unigram: Floats | None = None
    fidelity_every: int = 0
