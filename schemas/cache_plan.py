"""The plan: which documents make which part, known before anything is computed.

In: document counts, from stage one's index of the data. Out: numbered parts, each a range of documents of one split.
"""

from typing import Annotated, Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from kdpipe.schemas.choices import SplitName
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.records import Record

MAX_PARTS = 1_000_000
# Rows of a part; its documents are sized in bytes beforehand, each of which may become a token.
MAX_PART_ROWS = 1 << 24
# Rows of a sequence, and of a document before it is cut: held in memory as a whole.
MAX_SEQUENCE_ROWS = 1 << 22
DocumentNumber = Annotated[int, Field(ge=0, le=1 << 48)]


class PlannedPart(Record):
    """One part of the plan: documents [first_document, first_document + n_documents) of its split."""

    number: int
    split: SplitName
    first_document: int
    n_documents: int


class SplitPlan(Record):
    """A split and the document numbers at which its parts begin, with the number of its documents at the end.

    `duplicates` is the most documents that can have the tokens of an earlier one; None where that is unknown, and
    then the key is not written.
    """

    name: SplitName
    bounds: Annotated[tuple[DocumentNumber, ...], Field(min_length=2, max_length=MAX_PARTS)]
    duplicates: DocumentNumber | None = None

    @model_validator(mode="after")
    def _increasing(self) -> "SplitPlan":
        if self.bounds[0] != 0 or any(a >= b for a, b in zip(self.bounds, self.bounds[1:], strict=False)):
            raise ValueError("bounds must start at 0 and increase")
        if self.duplicates is not None and self.duplicates >= self.bounds[-1]:
            raise ValueError(f"{self.duplicates:,} of {self.bounds[-1]:,} documents cannot repeat an earlier one")
        return self

    @model_serializer(mode="wrap")
    def _without_unknown(self, inner: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = inner(self)
        if self.duplicates is None:
            written.pop("duplicates", None)
        return written


class CachePlan(Record):
    """Parts are numbered through the splits in order."""

    splits: Annotated[tuple[SplitPlan, ...], Field(min_length=1, max_length=2)]
    sequence_length: int = Field(ge=1, le=MAX_SEQUENCE_ROWS)
    packed: bool = True

    @model_validator(mode="after")
    def _distinct(self) -> "CachePlan":
        if len({split.name for split in self.splits}) != len(self.splits):
            raise ValueError("duplicate split")
        return self

    @property
    def n_parts(self) -> int:
        """How many parts there are in all splits."""
        return sum(len(split.bounds) - 1 for split in self.splits)

    def with_duplicates_of(self, other: "CachePlan") -> "CachePlan":
        """The same, with the other's counts of duplicates for splits of equal bounds that have none."""
        known = {(split.name, split.bounds): split.duplicates for split in other.splits}
        splits = tuple(
            split.model_copy(update={"duplicates": known.get((split.name, split.bounds))})
            if split.duplicates is None
            else split
            for split in self.splits
        )
        return self.model_copy(update={"splits": splits})

    def part(self, number: int) -> PlannedPart:
        """The part of a number."""
        left = number
        for split in self.splits:
            if 0 <= left < len(split.bounds) - 1:
                first, end = split.bounds[left], split.bounds[left + 1]
                return PlannedPart(number=number, split=split.name, first_document=first, n_documents=end - first)
            left -= len(split.bounds) - 1
        raise ConfigError(f"the plan has {self.n_parts} parts, there is no part {number}")
