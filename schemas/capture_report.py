"""Reports of `cache-teacher` and `plan`: the JSON documents of `--json`, key by key."""

from kdpipe.schemas.records import Record
from kdpipe.schemas.summary import CacheSizes, FidelitySummary


class PartCounts(Record):
    """Parts that are planned, present, and made by this run."""

    planned: int
    present: int
    made: int


class CaptureReport(Record):
    """A run of `cache-teacher`; sizes are of the cache, rates of this run.

    `teacher_share` is the share of the time that was spent waiting on the teacher; `seconds` is wall time.
    """

    cache: str
    cache_id: str | None
    complete: bool
    parts: PartCounts
    positions: int
    bytes: int
    sizes: CacheSizes
    bytes_per_position: float | None
    entries_per_position: float | None
    positions_per_second: float | None
    teacher_share: float | None
    batches_halved: int
    bad_rows: int
    cut_documents: int
    known_documents: int = 0
    untrainable_documents: int = 0
    fidelity: FidelitySummary | None
    seconds: float


class MemoryEstimate(Record):
    """Bytes needed at once: on the teacher's device, then on the host for rows that wait to be written."""

    weights: int
    activations: int
    logits_chunk: int
    waiting_rows: int
    writer: int
    total: int


class ProbeReport(Record):
    """Measurements of a short run of the teacher; `overhead_ratio` is caching over a bare forward pass."""

    positions_per_second: float
    seconds: float
    overhead_ratio: float | None
    entries_per_position: float | None


class PlanReport(Record):
    """Estimates for `cache-teacher`; mappings of documents, positions and parts are by split.

    `bytes_per_position` is by array with its `total`; `second_caches` are the estimated bytes of caches of the same
    documents for other temperatures, by temperature; `memory` is that of one worker, `hours` those of all `workers`
    together; `break_even_runs` is the number of students from which on the cache costs less than running the teacher.
    """

    teacher: str | None
    n_parameters: int | None
    documents: dict[str, int]
    positions: dict[str, int]
    sequences: int
    parts: dict[str, int]
    positions_per_part: int
    entries_per_position: float | None
    bytes_per_position: dict[str, float]
    bytes: int
    second_caches: dict[str, int]
    memory: MemoryEstimate
    probe: ProbeReport | None
    workers: int
    hours: float | None
    break_even_runs: int | None
    notes: tuple[str, ...]
