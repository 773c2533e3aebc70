"""What `kdpipe cache inspect` says of a cache.

In: nothing is read from a file. Out: the JSON document of `kdpipe cache inspect --json`, key by key as DESIGN 5 names
them. Before it: `manifest.py`. After it: `cache/inspect.py` fills it in, `cli/cache/inspect.py` shows it.
"""

from kdpipe.schemas.manifest import Data, Origin, Teacher
from kdpipe.schemas.records import Record
from kdpipe.schemas.targets import HiddenSpec, TargetSpec


class PartsSummary(Record):
    """Planned parts and those that are there."""

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
    """Ids kept at a position."""

    mean: float
    p50: float
    p95: float


class FidelitySummary(Record):
    """How near stored targets are to the full distribution; None where no part says."""

    rows: int
    kl_nats: float
    total_variation: float
    kept_mass: dict[str, float]
    gradient_angle_degrees: float | None


class ScaledSummary(Record):
    """Rows of a lossy source that added up to more than 1 and were scaled to 1, over all parts.

    `median_excess` is the median of the parts' medians, each weighing as much as its rows.
    """

    rows: int
    largest_excess: float
    median_excess: float


class CacheSummary(Record):
    """The whole answer; `bytes_per_position` sums over the parts, its total leaves text out."""

    url: str
    cache_id: str | None
    format: str
    complete: bool
    kdpipe: str
    teacher: Teacher | None
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
    bytes_per_position: dict[str, float]
    temperatures: tuple[float, ...]
    fidelity: FidelitySummary | None
    scaled: ScaledSummary | None
