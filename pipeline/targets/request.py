"""What is wanted of a teacher, for all rows of a cache."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kdpipe.cache.format.quantizers import Floats
from kdpipe.cache.format.rows import Bools
from kdpipe.schemas.targets import HiddenSpec, TargetSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRequest:
    """What is wanted of the teacher at every row; the same for a whole cache.

    `tables` are the fitted projections that `hidden` names, as the cache names them; `starts_word` says of each id
    whether it starts a new word, for the boundary scalar; `unigram` how frequent it is in the data, for fidelity.
    `fidelity_every` n compares every n-th position of a piece with its full distribution; 0 compares none.
    """

    targets: TargetSpec
    hidden: HiddenSpec
    vocabulary_size: int
    seed: int
    tables: Mapping[str, Floats] = field(default_factory=dict)
    starts_word: Bools | None = None
    unigram: Floats | None = None
    fidelity_every: int = 0
