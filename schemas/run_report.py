"""What `kdpipe train` answers with.

In: what the story of stage two found and did. Out: the JSON document of `--json`, key by key.
"""

from kdpipe.schemas.records import Record


class TermReport(Record):
    """One term of the objective at the last step: its raw value, its weight, what it adds (with T² or T), and its share
    of the loss."""

    raw: float | None
    weight: float
    weighted: float | None
    share: float | None


class BestReport(Record):
    """The step whose student was best by the chosen metric."""

    step: int
    metric: str
    value: float


class TrainMemory(Record):
    """Bytes: the student's weights, and the most that the process (and its GPU) held at once."""

    weights: int
    peak_process: int | None
    peak_device: int | None


class Estimate(Record):
    """What the whole run would take, from the steps of a dry run."""

    seconds: float
    peak_bytes: int


class TrainReport(Record):
    """What a run of `train` has done.

    `waiting_share` is the share of the time that the student's device waited for the cache; `evaluation` is of the
    validation split at the end, None where there is none.
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
    best: BestReport | None
    skipped: int
    rollbacks: int
    positions_per_second: float | None
    waiting_share: float | None
    memory: TrainMemory
    seconds: float
    dry_run: Estimate | None = None
