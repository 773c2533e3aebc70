"""Records in the files of a run and its checkpoints: identity, progress, guard.

In: JSON of OUT/run.json and OUT/checkpoints/step-N/*.json. Out: frozen records; numbers are restored to the bit.
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
    """The identity of a run: its settings, and cache and student by content. `earlier` has the digests of its earlier
    identities, before --resume-from changed settings."""

    settings: TrainSettings
    cache_id: Name
    student: Name
    earlier: tuple[Sha256, ...] = Field(default=(), max_length=4096)


class GuardState(Record):
    """The state of the guard: gradient norms of the last accepted steps, and counts.

    `fresh` is the number of norms since the last change of phase, rollback, or end of CE-only steps; steps that a
    rollback undid move from `accepted` to `undone`; `in_a_row` are skips since the last accepted step, `ce_only_left`
    the CE-only steps left.
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
    """The loss scale, and steps since it last changed."""

    scale: float = Field(gt=0)
    growth_tracker: Natural


class Best(Record):
    """The best step so far, by the chosen metric."""

    step: Natural
    value: float


class MetricsState(Record):
    """The part of metrics.jsonl that belongs to a checkpoint: number of lines and bytes, and digest."""

    bytes: Natural = 0
    lines: Natural = 0
    sha256: Sha256 = sha256_hex(b"")


class LoopState(Record):
    """The progress of a run: `step` optimizer steps are done, `place` sequences were used.

    `order_began` is the place where the current data order began, `phase` the number of the current phase. `snapshot`
    is the step of the newest scheduled checkpoint, the target of a rollback: those written when a run is interrupted do
    not count, so that an interruption changes no rollback.
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
