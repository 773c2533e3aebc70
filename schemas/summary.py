"""The summary of a cache: the JSON document of `kdpipe cache inspect --json`, key by key."""

from typing import Literal

from kdpipe.schemas.manifest import Data, Origin, TeacherRecord
from kdpipe.schemas.records import Record
from kdpipe.schemas.targets import HiddenSpec, TargetSpec

Support = Literal["exact", "unbiased", "coarse"]


class PartsSummary(Record):
    """Planned parts and those present."""

    planned: int
    present: int


class SplitSummary(Record):
    """One split."""

    parts: int
    documents: int
    sequences: int
    rows: int
    positions: int


class TokenizerSummary(Record):
    """The tokenizer's identity."""

    fingerprint: str
    vocabulary_size: int
    files: tuple[str, ...]


class EntriesSummary(Record):
    """Ids kept per position."""

    mean: float
    p50: float
    p95: float


class FidelitySummary(Record):
    """How near stored targets are to the full distribution at `temperature`, on `rows` of so many parts.

    Each error is a standard error, None where one part was measured. The angle is that of the gradient over
    `gradient_batch` positions. `verdict` is the conclusion for training.
    """

    rows: int
    parts: int
    temperature: float
    kl_nats: float
    kl_error: float | None
    total_variation: float
    total_variation_error: float | None
    kept_mass: dict[str, float]
    kept_mass_error: dict[str, float | None]
    gradient_angle_degrees: float | None
    gradient_angle_error: float | None
    gradient_batch: int | None
    verdict: str


class TemperatureSummary(Record):
    """What a student trained at a temperature gets: the whole distribution, unbiased draws, or exact ids and one bin.

    `kept_mass` is the mass of the exact ids there, None where it was not measured; `shifted` means that the value of
    forward KL by draws is too large by a constant.
    """

    targets: Support
    kept_mass: float | None
    shifted: bool


class ScaledSummary(Record):
    """Rows of a lossy source that added up to more than 1 and were scaled to 1, over all parts.

    `median_excess` is the median of the parts' medians, each weighing as much as its rows.
    """

    rows: int
    largest_excess: float
    median_excess: float


class CacheSizes(Record):
    """Bytes of a cache: parts, and what is there once: tokenizer, tables, and `records`, which are manifest and index.

    The `journal` is beside the cache, and read by nothing; None where it cannot be listed.
    """

    parts: int
    tokenizer: int
    tables: int
    records: int
    journal: int | None

    @property
    def total(self) -> int:
        """The bytes that a copy of the cache has."""
        return self.parts + self.tokenizer + self.tables + self.records


class CacheSummary(Record):
    """The summary; `bytes_per_position` sums over the parts, and its total excludes text."""

    url: str
    cache_id: str | None
    format: str
    complete: bool
    kdpipe: str
    teacher: TeacherRecord | None
    tokenizer: TokenizerSummary
    data: Data
    targets: TargetSpec
    hidden: HiddenSpec
    history: tuple[Origin, ...]
    splits: dict[str, SplitSummary]
    parts: PartsSummary
    documents: int
    sequences: int
    rows: int
    positions: int
    entries_per_position: EntriesSummary | None
    entropy_nats: float | None
    label_nats: float | None
    tail_mass: float | None
    bytes: int
    shared_bytes: int
    sizes: CacheSizes
    bytes_per_position: dict[str, float]
    temperatures: tuple[float, ...]
    by_temperature: dict[str, TemperatureSummary]
    fidelity: FidelitySummary | None
    scaled: ScaledSummary | None
