"""The report of `kdpipe train`.

In: a run. Out: the JSON document of `--json`, key by key.
"""

from pydantic import Field

from kdpipe.schemas.choices import StudentSource
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


class DryStep(Record):
    """One step of a dry run, with the learning rate of each parameter group."""

    step: int
    loss: float
    terms: dict[str, TermReport]
    rates: dict[str, float]
    gradient_norm: float


class Estimate(Record):
    """A dry run: time and memory of the whole run, extrapolated from its steps.

    `peak_device_bytes` is that of a GPU. Shapes are those of the first micro-batch, by name of the tensor.
    """

    seconds: float
    peak_bytes: int
    peak_device_bytes: int | None = None
    steps: tuple[DryStep, ...] = ()
    student_shapes: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    teacher_shapes: dict[str, tuple[int, ...]] = Field(default_factory=dict)


class StudentSetup(Record):
    """The student: where its weights come from, its size, where and in which precision it is trained."""

    name: str
    source: StudentSource
    n_parameters: int
    n_trainable: int
    vocabulary_size: int
    device: str
    precision: str


class TeacherSetup(Record):
    """The teacher as the cache records it; None: unknown."""

    name: str
    n_layers: int | None
    hidden_size: int | None


class CacheSetup(Record):
    """The cache: positions are the trained tokens of a split."""

    path: str
    cache_id: str | None
    targets: str
    vocabulary_size: int
    sequence_length: int
    sequences: int
    positions: int
    validation_sequences: int
    validation_positions: int


class GroupSetup(Record):
    """A parameter group: `lr` is its peak learning rate."""

    optimizer: str
    n_parameters: int
    lr: float


class OptimizerSetup(Record):
    """The optimizer, its parameter groups by name, and why these learning rates."""

    kind: str
    groups: dict[str, GroupSetup]
    reason: str
    weight_decay: float
    clip: float


class RunSetup(Record):
    """What a run is about to do; `losses` are the weights in the middle of the run."""

    student: StudentSetup
    teacher: TeacherSetup | None
    cache: CacheSetup
    losses: dict[str, float]
    temperature: float
    optimizer: OptimizerSetup
    schedule: str
    warmup_steps: int
    guard: str
    batch_size: int
    micro_batch_size: int
    accumulate: int
    steps: int
    epochs: float
    evaluate_every: int
    save_every: int
    keep_checkpoints: int


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
    setup: RunSetup | None = None
