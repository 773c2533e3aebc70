"""Targets per position: the kind of target, its temperatures, hidden-state summaries.

In: settings of stage one, or a manifest. Out: the `targets` and `hidden` objects of the manifest. What differs by kind
is on the record of the kind.
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from kdpipe.schemas.choices import DtypeName
from kdpipe.schemas.records import Record

MAX_ENTRIES = 4096
MAX_WIDTH = 1 << 16
Temperature = Annotated[float, Field(ge=0.001, le=1000)]
# Soft caps and scales of logits: beyond these bounds float32 overflows or underflows.
Factor = Annotated[float, Field(ge=2**-20, le=2**20)]
Layer = Annotated[int, Field(ge=0, le=10_000)]


class KindOfTarget(Record):
    """What differs by kind of target; `max_entries` and `tail_known` are fields of some kinds.

    `has_entries`: rows hold ids; `has_draws`: some of them are draws; `draws_repeat`: how often each was drawn is
    stored. `full_distribution`: a teacher that shows only its most probable ids cannot give it.
    """

    has_teacher: ClassVar[bool] = True
    has_entries: ClassVar[bool] = True
    has_draws: ClassVar[bool] = False
    draws_repeat: ClassVar[bool] = False
    full_distribution: ClassVar[bool] = False

    @property
    def amount(self) -> float:
        """A number that grows with how much of a row is kept."""
        return 0.0

    @property
    def state_width(self) -> int:
        """Width of the state that is stored for each row."""
        return 0

    @property
    def state_bytes(self) -> int:
        """Bytes of that state."""
        return 0

    def is_richer_than(self, other: Self) -> bool:
        """Whether this keeps more than another target of the same kind does."""
        return self.amount > other.amount


class Threshold(KindOfTarget):
    """Exact where p >= tau' (solved for each row), the rest by systematic sampling without replacement."""

    has_draws: ClassVar[bool] = True
    full_distribution: ClassVar[bool] = True
    tail_known: ClassVar[bool] = True
    kind: Literal["threshold"] = "threshold"
    tau: float = Field(gt=0, le=1)
    max_entries: int = Field(default=64, ge=1, le=MAX_ENTRIES)

    @property
    def amount(self) -> float:
        return 1 / self.tau

    def is_richer_than(self, other: Self) -> bool:
        return self.tau < other.tau


class Sampled(KindOfTarget):
    """The most probable id exactly, the rest as draws with replacement and how often each was drawn."""

    has_draws: ClassVar[bool] = True
    draws_repeat: ClassVar[bool] = True
    full_distribution: ClassVar[bool] = True
    tail_known: ClassVar[bool] = True
    kind: Literal["sampled"] = "sampled"
    draws: int = Field(ge=1, le=MAX_ENTRIES - 1)

    @property
    def amount(self) -> float:
        return self.draws

    @property
    def max_entries(self) -> int:
        return self.draws + 1


class TopK(KindOfTarget):
    """The k most probable ids, exactly."""

    tail_known: ClassVar[bool] = True
    kind: Literal["topk"] = "topk"
    k: int = Field(ge=1, le=MAX_ENTRIES)

    @property
    def amount(self) -> float:
        return self.k

    @property
    def max_entries(self) -> int:
        return self.k


class TopP(KindOfTarget):
    """The fewest most probable ids whose mass reaches p, exactly."""

    tail_known: ClassVar[bool] = True
    kind: Literal["topp"] = "topp"
    p: float = Field(gt=0, le=1)
    max_entries: int = Field(default=MAX_ENTRIES, ge=1, le=MAX_ENTRIES)

    @property
    def amount(self) -> float:
        return 1 / max(1 - self.p, 2.0**-53)

    def is_richer_than(self, other: Self) -> bool:
        return self.p > other.p


class State(KindOfTarget):
    """The last hidden state, quantized in groups; with the output head in tables/ it gives every probability."""

    has_entries: ClassVar[bool] = False
    full_distribution: ClassVar[bool] = True
    tail_known: ClassVar[bool] = False
    max_entries: ClassVar[int] = 0
    kind: Literal["state"] = "state"
    width: int = Field(ge=1, le=MAX_WIDTH)
    group: int = Field(default=128, ge=1, le=MAX_WIDTH)
    head_dtype: DtypeName = "float32"
    head_bias: bool = False
    soft_cap: Factor | None = None
    logit_scale: Factor = 1.0

    @property
    def state_width(self) -> int:
        return self.width

    @property
    def state_bytes(self) -> int:
        return self.width + 4 * -(-self.width // self.group)


class Imported(KindOfTarget):
    """Exact ids as another tool stored them; `tail_known` is false where their total mass is unknown."""

    kind: Literal["imported"] = "imported"
    source: str = Field(min_length=1, max_length=200)
    max_entries: int = Field(ge=1, le=MAX_ENTRIES)
    tail_known: bool = False

    @property
    def amount(self) -> float:
        return self.max_entries


class NoTargets(KindOfTarget):
    """Tokens only."""

    has_teacher: ClassVar[bool] = False
    has_entries: ClassVar[bool] = False
    tail_known: ClassVar[bool] = False
    max_entries: ClassVar[int] = 0
    kind: Literal["none"] = "none"


KeptSpec = Annotated[Threshold | Sampled | TopK | TopP | State | Imported | NoTargets, Field(discriminator="kind")]
# The kinds that `cache-teacher` makes, by the names of its option --targets.
CAPTURED: dict[str, type[KindOfTarget]] = {
    "threshold": Threshold,
    "sampled": Sampled,
    "topk": TopK,
    "topp": TopP,
    "state": State,
    "none": NoTargets,
}


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
