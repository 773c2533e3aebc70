"""What is kept of the teacher at a position: the kind of target, its temperatures, hidden-state summaries.

In: flags and configuration of stage one. Out: the `targets` and `hidden` objects of the manifest.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kdpipe.schemas.choices import DtypeName
from kdpipe.schemas.records import Record

MAX_ENTRIES = 4096
MAX_WIDTH = 1 << 16
Temperature = Annotated[float, Field(ge=0.001, le=1000)]
# What logits are capped at or multiplied by: beyond these bounds float32 overflows or vanishes.
Factor = Annotated[float, Field(ge=2**-20, le=2**20)]
Layer = Annotated[int, Field(ge=0, le=10_000)]


class Threshold(Record):
    """Exact where p >= tau' (solved for each row), the rest by systematic sampling without replacement."""

    kind: Literal["threshold"] = "threshold"
    tau: float = Field(gt=0, le=1)
    max_entries: int = Field(default=64, ge=1, le=MAX_ENTRIES)


class Sampled(Record):
    """The most probable id exactly, the rest as draws with replacement and how often each was drawn."""

    kind: Literal["sampled"] = "sampled"
    draws: int = Field(ge=1, le=MAX_ENTRIES - 1)


class TopK(Record):
    """The k most probable ids, exactly."""

    kind: Literal["topk"] = "topk"
    k: int = Field(ge=1, le=MAX_ENTRIES)


class TopP(Record):
    """The fewest most probable ids whose mass reaches p, exactly."""

    kind: Literal["topp"] = "topp"
    p: float = Field(gt=0, le=1)
    max_entries: int = Field(default=MAX_ENTRIES, ge=1, le=MAX_ENTRIES)


class State(Record):
    """The last hidden state, quantized in groups; with the output head in tables/ it gives every probability."""

    kind: Literal["state"] = "state"
    width: int = Field(ge=1, le=MAX_WIDTH)
    group: int = Field(default=128, ge=1, le=MAX_WIDTH)
    head_dtype: DtypeName = "float32"
    head_bias: bool = False
    soft_cap: Factor | None = None
    logit_scale: Factor = 1.0


class Imported(Record):
    """Exact ids as another tool stored them; `tail_known` is false where it did not say how much mass it left out."""

    kind: Literal["imported"] = "imported"
    source: str = Field(min_length=1, max_length=200)
    max_entries: int = Field(ge=1, le=MAX_ENTRIES)
    tail_known: bool = False


class NoTargets(Record):
    """Tokens only."""

    kind: Literal["none"] = "none"


KeptSpec = Annotated[Threshold | Sampled | TopK | TopP | State | Imported | NoTargets, Field(discriminator="kind")]


class TargetSpec(Record):
    """What is kept, drawn at which temperature, with log_z at which others, and whether draws carry their own log p."""

    keep: KeptSpec
    target_temperature: Temperature = 1.0
    temperatures: tuple[Temperature, ...] = ()
    draw_values: bool = False
    boundary: bool = False
    entropy: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> "TargetSpec":
        if self.keep.kind == "none" and (self.temperatures or self.boundary or self.entropy):
            raise ValueError("targets of kind none hold no entropy, no temperatures and no boundary scalar")
        if len(set(self.temperatures)) != len(self.temperatures) or 1.0 in self.temperatures:
            raise ValueError("temperatures must differ from each other and from 1, whose log_z is 0")
        if self.target_temperature != 1.0 and self.target_temperature not in self.temperatures:
            raise ValueError("the target temperature must be 1 or one of the temperatures")
        if self.target_temperature != 1.0 and self.has_entries and not self.tail_known:
            raise ValueError("targets whose tail is unknown have no weights at another temperature than 1")
        if self.draw_values and not self.has_draws:
            raise ValueError(f"targets of kind {self.keep.kind} have no draws that could carry values")
        return self

    @property
    def has_entries(self) -> bool:
        """Whether rows keep ids at all."""
        return self.keep.kind not in ("state", "none")

    @property
    def has_draws(self) -> bool:
        """Whether some ids of a row are draws."""
        return self.keep.kind in ("threshold", "sampled")

    @property
    def is_shifted(self) -> bool:
        """Whether forward KL by draws lacks the entropy within the bin, which values or, at T=1, the entropy give."""
        return self.has_draws and not self.draw_values and (self.target_temperature != 1.0 or not self.entropy)

    @property
    def tail_known(self) -> bool:
        """Whether `log_tail` is stored."""
        return self.has_entries and not (isinstance(self.keep, Imported) and not self.keep.tail_known)

    @property
    def max_entries(self) -> int:
        """The most ids a row can keep."""
        keep = self.keep
        if isinstance(keep, TopK):
            return keep.k
        if isinstance(keep, Sampled):
            return keep.draws + 1
        return keep.max_entries if isinstance(keep, Threshold | TopP | Imported) else 0


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
                raise ValueError("a layer is named twice")
        return self
