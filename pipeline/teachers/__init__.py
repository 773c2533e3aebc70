"""`Teacher`: a model that predicts at the rows of some pieces.

In: batches of pieces. Out: an `CaptureResult` for each, in order. `local_teacher.py` is a model of transformers.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kdpipe.cache.format.rows import Block, Floats
from kdpipe.pipeline.documents.segments import Segment
from kdpipe.pipeline.targets.request import TargetRequest
from kdpipe.schemas import manifest
from kdpipe.schemas.part import Fidelity


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureResult:
    """What the teacher said about a batch: the rows of its pieces one behind the other, padding taken out.

    `pooled` has a vector a piece for every pooled layer; `halved` says how often the batch was cut for lack of memory.
    """

    block: Block
    pooled: Mapping[int, Floats] = field(default_factory=dict)
    halved: int = 0


class Teacher(Protocol):
    """The seam between stage one and whatever knows the distributions."""

    @property
    def facts(self) -> manifest.TeacherRecord:
        """Who it is, for the manifest."""
        ...

    def answers(self, batches: Iterable[Sequence[Segment]], asked: TargetRequest) -> Iterator[CaptureResult]:
        """Answer batch after batch, in their order; the next one may be under way before the last is taken."""
        ...

    def measured(self) -> Fidelity | None:
        """How near the answers since the last call come to the full distributions, where these were compared."""
        ...
