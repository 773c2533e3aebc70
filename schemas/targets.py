"""Targets per position: the kind of target, its temperatures, hidden-state summaries.

In: settings of stage one, or a manifest. Out: the `targets` and `hidden` objects of the manifest. What differs by kind
is on the record of the kind.
"""

from functools import reduce
from importlib import import_module
from operator import or_
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from kdpipe.schemas.member_tables import TARGET_KINDS
from kdpipe.schemas.records import Record
from kdpipe.schemas.target_kinds import MAX_WIDTH, KindOfTarget

Temperature = Annotated[float, Field(ge=0.001, le=1000)]
Layer = Annotated[int, Field(ge=0, le=10_000)]


def _record_class(name: str) -> type[KindOfTarget]:
    module, _, attribute = TARGET_KINDS[name].record.partition(":")
    record: type[KindOfTarget] = getattr(import_module(module), attribute)
    return record


RECORDS = {name: _record_class(name) for name in TARGET_KINDS}
# The kinds that `cache-teacher` makes, by the names of its option --targets.
CAPTURED = {name: record for name, record in RECORDS.items() if TARGET_KINDS[name].captured}
if TYPE_CHECKING:
    KeptSpec = KindOfTarget
else:
    KeptSpec = Annotated[reduce(or_, RECORDS.values()), Field(discriminator="kind")]


class TargetSpec(Record):
    """Kind of target, temperature of its draws, temperatures of log_z, and whether draws store their own log p."""

    keep: KeptSpec
    target_temperature: Temperature = 1.0
    temperatures: tuple[Temperature, ...] = ()
    draw_values: bool = False
    boundary: bool = False
    entropy: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> "TargetSpec":
        if not self.keep.has_teacher and (self.temperatures or self.boundary or self.entropy):
            raise ValueError(
                f"targets of kind {self.keep.kind} hold no entropy, no temperatures and no boundary scalar"
            )
        if len(set(self.temperatures)) != len(self.temperatures) or 1.0 in self.temperatures:
            raise ValueError("temperatures must differ from each other and from 1, whose log_z is 0")
        if self.target_temperature != 1.0 and self.target_temperature not in self.temperatures:
            raise ValueError("the target temperature must be 1 or one of the temperatures")
        if self.target_temperature != 1.0 and self.has_entries and not self.tail_known:
            raise ValueError("targets whose tail is unknown have no weights at another temperature than 1")
        if self.draw_values and not self.has_draws:
            raise ValueError(f"targets of kind {self.keep.kind} have no draws to store values of")
        return self

    @property
    def has_entries(self) -> bool:
        """Whether rows hold ids."""
        return self.keep.has_entries

    @property
    def has_draws(self) -> bool:
        """Whether some ids of a row are draws."""
        return self.keep.has_draws

    @property
    def tail_known(self) -> bool:
        """Whether `log_tail` is stored."""
        return self.keep.tail_known

    @property
    def max_entries(self) -> int:
        """The most ids that a row can hold."""
        return self.keep.max_entries

    @property
    def is_shifted(self) -> bool:
        """Whether forward KL by draws lacks the entropy within the bin, which values or, at T=1, the entropy give."""
        return self.has_draws and not self.draw_values and (self.target_temperature != 1.0 or not self.entropy)


class WholeState(Record):
    """The state as it is."""

    kind: Literal["none"] = "none"


class RandomProjection(Record):
    """A matrix of signs over sqrt(width), drawn from the seed and the layer; `version` names the recipe."""

    kind: Literal["random"] = "random"
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    version: int = Field(default=1, ge=1)


class PcaProjection(Record):
    """A fitted projection of `input_width` numbers; matrix and mean are tables of the cache."""

    kind: Literal["pca"] = "pca"
    input_width: int = Field(ge=1, le=MAX_WIDTH)


Projection = Annotated[WholeState | RandomProjection | PcaProjection, Field(discriminator="kind")]


class Vector(Record):
    """One summary of one layer: `width` numbers as int8 in groups that share a float32 scale."""

    layer: Layer
    width: int = Field(ge=1, le=MAX_WIDTH)
    group: int = Field(ge=1, le=MAX_WIDTH)
    projection: Projection = RandomProjection()

    @property
    def n_bytes(self) -> int:
        """Bytes of one coded vector: its int8 values, then its scales."""
        return self.width + 4 * -(-self.width // self.group)


class HiddenSpec(Record):
    """Summaries pooled over a document, and of every row."""

    pooled: tuple[Vector, ...] = Field(default=(), max_length=256)
    rows: tuple[Vector, ...] = Field(default=(), max_length=256)

    @model_validator(mode="after")
    def _distinct(self) -> "HiddenSpec":
        for vectors in (self.pooled, self.rows):
            if len({vector.layer for vector in vectors}) != len(vectors):
                raise ValueError("duplicate layer")
        return self
