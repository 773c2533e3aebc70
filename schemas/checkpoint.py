"""What the files of a checkpoint and of a run say beside the tensors: where the run is, what the guard has seen.

In: JSON of OUT/run.json and OUT/checkpoints/step-N/*.json. Out: frozen records; numbers come back to the bit.
"""

from typing import Annotated, Literal

from pydantic import Field

from kdpipe.schemas.manifest import FileRecord, Sha256
from kdpipe.schemas.model import Name
from kdpipe.schemas.records import Record
from kdpipe.schemas.strict_json import sha256_hex
from kdpipe.schemas.train_settings import TrainSettings

Natural = Annotated[int, Field(ge=0, le=1 << 60)]


class RunRecord(Record):
    """Which run a folder or a checkpoint belongs to: everything that was asked, the cache by content, the student by
    content. `earlier` are the digests of what it was before it was steered from a checkpoint."""

    settings: TrainSettings
    cache_id: Name
    student: Name
    earlier: tuple[Sha256, ...] = Field(default=(), max_length=4096)


class GuardState(Record):
    """What the guard remembers: the norms of the last accepted steps, and counts.

    `fresh` is how many of the norms came after the last change of phase, rollback, or end of steps on labels alone;
    `accepted` steps that a rollback took back are `undone` instead; `in_a_row` are skips since the last accepted step,
    `ce_only_left` steps that are still to be taken on labels alone.
    """

    phase: Natural = 0
    norms: tuple[Annotated[float, Field(ge=0)], ...] = ()
    fresh: Natural = 0
    accepted: Natural = 0
    undone: Natural = 0
    skipped: Natural = 0
    overflowed: Natural = 0
    in_a_row: Natural = 0
    rollbacks: Natural = 0
    rate_factor: float = Field(default=1.0, ge=0, le=1)
    ce_only_left: Natural = 0


class ScalerState(Record):
    """The scale of the loss, and steps since it last changed."""

    scale: float = Field(gt=0)
    growth_tracker: Natural


class Best(Record):
    """The step whose student was best so far, by the chosen metric."""

    step: Natural
    value: float


class MetricsState(Record):
    """How much of metrics.jsonl belongs to a checkpoint: its first `lines`, of `bytes` bytes, and their digest."""

    bytes: Natural = 0
    lines: Natural = 0
    sha256: Sha256 = sha256_hex(b"")


class LoopState(Record):
    """Where a run is: `step` optimizer steps are done; `place` is the next one in the line of the order.

    `order_began` is the place in the line at which the order in force began, `phase` the number of its phase;
    `metrics` is how far metrics.jsonl had come. `snapshot` is the step of the newest checkpoint that
    was due, to which a rollback leads: one made because the run was stopped would lead it elsewhere.
    """

    step: Natural
    place: Natural
    order_began: Natural = 0
    phase: Natural = 0
    snapshot: Natural = 0
    positions: Natural = 0
    tokens: Natural = 0
    seconds: float = Field(default=0.0, ge=0)
    metrics: MetricsState = MetricsState()
    threads: int | None = Field(default=None, ge=1)
    guard: GuardState = GuardState()
    scaler: ScalerState | None = None
    best: Best | None = None


class CheckpointRecord(Record):
    """checkpoint.json, written last: size and sha256 of every file beside it."""

    version: Literal[2]
    files: dict[Name, FileRecord]
