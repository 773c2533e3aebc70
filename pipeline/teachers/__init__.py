"""`Teacher`: whoever answers for the rows of some pieces, and what it is asked.

In: batches of pieces. Out: an `Answer` for each, in order. `local.py` is a model of transformers in this process; a
served one, which shows its top candidates only, answers for `topk` and `topp` and says so in its facts.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kdpipe.cache.rows import Block, Bools, Floats
from kdpipe.pipeline.data.pieces import Piece
from kdpipe.schemas import manifest
from kdpipe.schemas.part import Fidelity
from kdpipe.schemas.targets import HiddenSpec, TargetSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the teacher said about a batch: the rows of its pieces one behind the other, padding taken out.

    `pooled` has a vector a piece for every pooled layer; `halved` says how often the batch was cut for lack of memory.
    """

    block: Block
    pooled: Mapping[int, Floats] = field(default_factory=dict)
    halved: int = 0


class Teacher(Protocol):
    """The seam between stage one and whatever knows the distributions."""

    @property
    def facts(self) -> manifest.Teacher:
        """Who it is, for the manifest."""
        ...

    def answers(self, batches: Iterable[Sequence[Piece]], asked: Asked) -> Iterator[Answer]:
        """Answer batch after batch, in their order; the next one may be under way before the last is taken."""
        ...

    def measured(self) -> Fidelity | None:
        """How near the answers since the last call come to the full distributions, where these were compared."""
        ...
