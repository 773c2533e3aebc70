"""The report of `kdpipe train`.

In: a run. Out: the JSON document of `--json`, key by key.
"""

from kdpipe.schemas.records import Record
from kdpipe.schemas.sample_report import RunSamples


class TermReport(Record):
    """A term of the last step: its raw value, its weight, its contribution (with T² or T), and its share of the
    loss.
    """

    raw: float | None
    weight: float
    weighted: float | None
    share: float | None


class BestReport(Record):
    """The best step by the chosen metric."""

    step: int
    metric: str
    value: float


class TrainMemory(Record):
    """Bytes of the student's weights, and peak memory of the process and of its GPU."""

    weights: int
    peak_process: int | None
    peak_device: int | None


class Estimate(Record):
    """Time and memory of the whole run, extrapolated from a dry run."""

    seconds: float
    peak_bytes: int


class TrainReport(Record):
    """A run of `train`; `waiting_share` is the share of time spent waiting for the cache, `evaluation` that of the
    final student and `samples` are its texts, None without a validation split.
    """

    run: str
    final: str | None
    cache: str
    cache_id: str | None
    student: str
    n_parameters: int
    n_trainable: int
    device: str
    precision: str
    steps: int
    steps_planned: int
    resumed_from: int | None
    positions: int
    epochs: float
    terms: dict[str, TermReport]
    loss: float | None
    evaluation: dict[str, float | int | str | None] | None
    samples: RunSamples | None = None
    best: BestReport | None
    skipped: int
    rollbacks: int
    positions_per_second: float | None
    waiting_share: float | None
    memory: TrainMemory
    seconds: float
    dry_run: Estimate | None = None
