"""Kinds of targets: a record of each with its settings, and everything that differs by kind.

In: settings of stage one, or the `keep` object of a manifest. Out: a record; its class states what rows of this kind
hold, which settings it takes, and its measured sizes. `schemas/member_tables.py` has a row for each kind.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from kdpipe.schemas.choices import DtypeName
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.records import Record

MAX_ENTRIES = 4096
MAX_WIDTH = 1 << 16
PROFILES = {"lean": 1 / 10, "standard": 1 / 25, "fine": 1 / 50}
# Soft caps and scales of logits: beyond these bounds float32 overflows or underflows.
Factor = Annotated[float, Field(ge=2**-20, le=2**20)]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputHead:
    """How a teacher's last hidden state becomes logits, for kind `state`."""

    width: int
    dtype: DtypeName = "float32"
    bias: bool = False
    soft_cap: float | None = None
    logit_scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredSizes:
    """Figures of benchmarks/entry_sizes.py for predictions of 2 to 3 nats: ids per position at the `reference` amount
    and T = 1, and bytes per id, for vocabularies of 512, 4,096, 32,000 and 128,000.

    Ids grow as amount ** `by_amount` * T ** `by_temperature`; `exact_share` of them at T = 1 are exact, None: one.
    """

    reference: float
    entries: tuple[float, ...]
    id_bytes: tuple[float, ...]
    by_amount: float
    by_temperature: float
    exact_share: float | None
    count_bytes: float


class KindOfTarget(Record):
    """What differs by kind of target; `max_entries` and `tail_known` are fields of some kinds.

    `has_entries`: rows hold ids; `has_draws`: some of them are draws; `draws_repeat`: how often each was drawn is
    stored. `complete`: a row gives the probability of every id. `labels_known`: the label's is always stored.
    `full_distribution`: a teacher that returns only its most probable ids cannot give it.
    `settings`: the settings of `TargetSettings` that apply, with the fields that they set; `requantized_by`: the one
    that `cache requantize` changes. A kind with ids has measured `sizes`, for `plan`.
    """

    has_teacher: ClassVar[bool] = True
    has_entries: ClassVar[bool] = True
    has_draws: ClassVar[bool] = False
    draws_repeat: ClassVar[bool] = False
    complete: ClassVar[bool] = False
    labels_known: ClassVar[bool] = True
    full_distribution: ClassVar[bool] = False
    settings: ClassVar[Mapping[str, str]] = {}
    requantized_by: ClassVar[str | None] = None
    sizes: ClassVar[MeasuredSizes | None] = None
    if TYPE_CHECKING:
        kind: str

        @property
        def max_entries(self) -> int: ...
        @property
        def tail_known(self) -> bool: ...

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], vocabulary_size: int, head: OutputHead | None) -> Self:
        """The record of the settings of `targets`, by name; the others have the field's default."""
        given = {field: settings[name] for name, field in cls.settings.items() if settings[name] is not None}
        return cls.model_validate(given)

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

    def flags(self) -> list[str]:
        """Options of `cache-teacher` for similar targets with draws; none for the default."""
        return []


class Threshold(KindOfTarget):
    """Exact where p >= tau' (solved for each row), the rest by systematic sampling without replacement."""

    has_draws = True
    full_distribution = True
    tail_known: ClassVar[bool] = True
    settings: ClassVar = {"profile": "tau", "tau": "tau", "max_entries": "max_entries"}
    requantized_by = "tau"
    sizes = MeasuredSizes(
        reference=25,
        entries=(10.7, 11.0, 11.1, 11.1),
        id_bytes=(0.93, 1.20, 1.45, 1.61),
        by_amount=0.61,
        by_temperature=1.1,
        exact_share=0.36,
        count_bytes=1.0,
    )
    kind: Literal["threshold"] = "threshold"
    tau: float = Field(gt=0, le=1)
    max_entries: int = Field(default=64, ge=1, le=MAX_ENTRIES)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], vocabulary_size: int, head: OutputHead | None) -> Self:
        if settings["max_entries"] == 1:
            raise ConfigError(
                "targets.max_entries is 1, targets of kind threshold hold at least one id and one draw",
                hint="give 2 or more",
            )
        tau = settings["tau"] or PROFILES[settings["profile"]]
        return super().from_settings({**settings, "profile": tau, "tau": tau}, vocabulary_size, head)

    @property
    def amount(self) -> float:
        return 1 / self.tau

    def is_richer_than(self, other: Self) -> bool:
        return self.tau < other.tau

    def flags(self) -> list[str]:
        return [] if self.tau == PROFILES["standard"] else ["--tau", f"{self.tau:g}"]


class Sampled(KindOfTarget):
    """The most probable id exactly, the rest as draws with replacement and how often each was drawn."""

    has_draws = True
    draws_repeat = True
    full_distribution = True
    tail_known: ClassVar[bool] = True
    settings: ClassVar = {"draws": "draws"}
    requantized_by = "draws"
    sizes = MeasuredSizes(
        reference=50,
        entries=(20.9, 22.2, 22.7, 22.9),
        id_bytes=(0.74, 1.02, 1.27, 1.43),
        by_amount=0.6,
        by_temperature=1.0,
        exact_share=None,
        count_bytes=0.8,
    )
    kind: Literal["sampled"] = "sampled"
    draws: int = Field(ge=1, le=MAX_ENTRIES - 1)

    @property
    def amount(self) -> float:
        return self.draws

    @property
    def max_entries(self) -> int:
        return self.draws + 1

    def flags(self) -> list[str]:
        return ["--targets", "sampled", "--draws", str(self.draws)]


class TopK(KindOfTarget):
    """The k most probable ids, exactly."""

    tail_known: ClassVar[bool] = True
    settings: ClassVar = {"top_k": "k"}
    requantized_by = "top_k"
    sizes = MeasuredSizes(
        reference=64,
        entries=(64.0, 64.0, 64.0, 64.0),
        id_bytes=(0.94, 1.12, 1.27, 1.38),
        by_amount=1.0,
        by_temperature=0.0,
        exact_share=1.0,
        count_bytes=0.1,
    )
    kind: Literal["topk"] = "topk"
    k: int = Field(ge=1, le=MAX_ENTRIES)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], vocabulary_size: int, head: OutputHead | None) -> Self:
        if settings["top_k"] > vocabulary_size:
            raise ConfigError(
                f"--top-k is {settings['top_k']:,}, the vocabulary has {vocabulary_size:,} ids",
                hint=f"give at most {vocabulary_size:,}",
            )
        return super().from_settings(settings, vocabulary_size, head)

    @property
    def amount(self) -> float:
        return self.k

    @property
    def max_entries(self) -> int:
        return self.k


class TopP(KindOfTarget):
    """The fewest most probable ids whose mass reaches p, exactly."""

    tail_known: ClassVar[bool] = True
    settings: ClassVar = {"top_p": "p", "max_entries": "max_entries"}
    requantized_by = "top_p"
    sizes = MeasuredSizes(
        reference=20,
        entries=(55.4, 139.4, 178.3, 192.5),
        id_bytes=(1.03, 1.20, 1.24, 1.27),
        by_amount=1.2,
        by_temperature=1.0,
        exact_share=1.0,
        count_bytes=1.0,
    )
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

    has_entries = False
    complete = True
    full_distribution = True
    tail_known: ClassVar[bool] = False
    max_entries: ClassVar[int] = 0
    kind: Literal["state"] = "state"
    width: int = Field(ge=1, le=MAX_WIDTH)
    group: int = Field(default=128, ge=1, le=MAX_WIDTH)
    head_dtype: DtypeName = "float32"
    head_bias: bool = False
    soft_cap: Factor | None = None
    logit_scale: Factor = 1.0

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], vocabulary_size: int, head: OutputHead | None) -> Self:
        if head is None:
            raise ConfigError(
                "targets of kind state need a teacher whose logits are its last hidden state times an output head",
                hint="use --targets threshold",
            )
        return cls(
            width=head.width,
            group=min(128, head.width),
            head_dtype=head.dtype,
            head_bias=head.bias,
            soft_cap=head.soft_cap,
            logit_scale=head.logit_scale,
        )

    @property
    def state_width(self) -> int:
        return self.width

    @property
    def state_bytes(self) -> int:
        return self.width + 4 * -(-self.width // self.group)


class Imported(KindOfTarget):
    """Exact ids as another tool stored them; `tail_known` is false where their total mass is unknown."""

    labels_known = False
    kind: Literal["imported"] = "imported"
    source: str = Field(min_length=1, max_length=200)
    max_entries: int = Field(ge=1, le=MAX_ENTRIES)
    tail_known: bool = False

    @property
    def amount(self) -> float:
        return self.max_entries


class NoTargets(KindOfTarget):
    """Tokens only."""

    has_teacher = False
    has_entries = False
    tail_known: ClassVar[bool] = False
    max_entries: ClassVar[int] = 0
    kind: Literal["none"] = "none"
