"""Settings of stage one: the flags of `kdpipe cache-teacher`, and settings that only a file or --set can change.

In: values from `settings.py`, by layer. Out: one frozen `CaptureSettings`. `MachineSettings` (devices, batches) do not
change the contents of a cache and are not in its manifest.
"""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from kdpipe.schemas.cache_plan import MAX_PART_ROWS, MAX_SEQUENCE_ROWS
from kdpipe.schemas.choices import (
    DtypeSetting,
    LongDocuments,
    PooledProjection,
    Profile,
    TargetKind,
    TeacherBackendName,
    TrainOnSetting,
    UntrainableDocuments,
    WeightQuantization,
)
from kdpipe.schemas.durations import Seconds
from kdpipe.schemas.member_tables import DEFAULT_BACKEND
from kdpipe.schemas.model import ModelSettings, Name, TeacherDevices
from kdpipe.schemas.records import Record
from kdpipe.schemas.target_kinds import MAX_ENTRIES, MAX_WIDTH
from kdpipe.schemas.targets import Temperature

# Each is a scalar per row, of which the format allows 64 at most.
MAX_TEMPERATURES = 16


def _spelled(layer: Any) -> Any:
    """A layer given as a number, as text: 1.0 (a share of the depth) is not 1 (a layer)."""
    return str(layer) if type(layer) in (int, float) else layer


def _is_layer(layer: str) -> str:
    if not re.fullmatch(r"[0-9]{1,5}|0\.[0-9]{1,9}|1\.0{1,9}", layer):
        raise ValueError("a layer is a number, or a share of the depth from 0.0 to 1.0")
    return layer


LayerName = Annotated[str, BeforeValidator(_spelled), AfterValidator(_is_layer)]


class Columns(Record):
    """Columns by role; roles that are not set are found by usual names."""

    text: Name | None = None
    prompt: Name | None = None
    response: Name | None = None
    messages: Name | None = None
    keep: tuple[Name, ...] = ("category", "language")


class DataSettings(Record):
    """The documents, and which of their tokens are trained on; files that match `text_files` are read as text."""

    path: Name | None = None
    split: Name | None = None
    text_files: tuple[Name, ...] = ()
    limit: int | None = Field(default=None, ge=1)
    val_path: Name | None = None
    val_fraction: float = Field(default=0.02, ge=0, lt=1)
    columns: Columns = Columns()
    train_on: TrainOnSetting = "auto"
    chat_template: Name | None = None
    append_stop: bool = True
    long_documents: LongDocuments = "split"
    untrainable: UntrainableDocuments = "refuse"
    max_bad_rows: int = Field(default=100, ge=0)
    max_document_bytes: int = Field(default=1 << 21, ge=1, le=1 << 21)
    max_row_bytes: int = Field(default=1 << 25, ge=1 << 10, le=1 << 30)


class SequenceSettings(Record):
    """Length of sequences (2,048 tokens, or the teacher's maximum if that is less) and packing.

    `part_rows` is the approximate number of tokens per part [1/64 of all, at least 32 k; 2.6 M from 16.8 M on].
    """

    length: int | None = Field(default=None, ge=2, le=MAX_SEQUENCE_ROWS)
    pack: bool = True
    part_rows: int | None = Field(default=None, ge=256, le=MAX_PART_ROWS // 4)


class TeacherSettings(ModelSettings):
    """The teacher. `tokenizer` replaces the teacher's own and must be equal by content.

    `display_name` and `license` override those of the model's folder in manifest and model cards.
    """

    backend: TeacherBackendName = DEFAULT_BACKEND
    tokenizer: Name | None = None
    allow_foreign_tokenizer: bool = False
    dtype: DtypeSetting = "auto"
    quantize: WeightQuantization = "none"
    display_name: Name | None = None
    license: Name | None = None


class TargetSettings(Record):
    """Targets per position; `draw_values` is on by default for draws at a temperature other than 1, where the value of
    the loss needs them.
    """

    kind: TargetKind = "threshold"
    profile: Profile = "standard"
    tau: float | None = Field(default=None, gt=0, le=1)
    top_k: int = Field(default=64, ge=1, le=MAX_ENTRIES)
    top_p: float = Field(default=0.95, gt=0, le=1)
    draws: int = Field(default=50, ge=1, le=MAX_ENTRIES - 1)
    max_entries: int | None = Field(default=None, ge=1, le=MAX_ENTRIES)
    target_temperature: Temperature = 1.0
    temperatures: tuple[Temperature, ...] = Field(default=(), max_length=MAX_TEMPERATURES)
    draw_values: bool | None = None
    for_other_tokenizers: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> "TargetSettings":
        if 1.0 in self.temperatures or len(set(self.temperatures)) != len(self.temperatures):
            raise ValueError("temperatures must differ from each other and from 1, whose log_z is 0")
        return self


class HiddenSettings(Record):
    """Summaries of hidden states: pooled over documents, and of every row for the given layers.

    A layer is a number, or a fraction of the depth written with a point: "0.5", "1.0".
    """

    pooled: bool = True
    layers: tuple[LayerName, ...] = ()
    dim: int = Field(default=64, ge=1, le=MAX_WIDTH)
    projection: PooledProjection = "random"


class MachineSettings(Record):
    """How this machine runs it."""

    devices: TeacherDevices = "auto"
    batch_tokens: int | None = Field(default=None, ge=1, le=1 << 22)
    threads: int | None = Field(default=None, ge=1, le=4096)


class CaptureSettings(Record):
    data: DataSettings = DataSettings()
    sequences: SequenceSettings = SequenceSettings()
    teacher: TeacherSettings = TeacherSettings()
    targets: TargetSettings = TargetSettings()
    hidden: HiddenSettings = HiddenSettings()
    machine: MachineSettings = MachineSettings()
    out: Name | None = None
    extend: Name | None = None
    seed: int = Field(default=0, ge=0, lt=1 << 63)


class CaptureOptions(Record):
    """Options of one run: every n-th of the missing parts, or a dry run of two batches.

    Remote errors are retried for `retry_for` seconds [300].
    """

    shard: int = Field(default=0, ge=0)
    n_shards: int = Field(default=1, ge=1, le=1 << 20)
    dry_run: bool = False
    retry_for: Seconds = 300.0

    @model_validator(mode="after")
    def _within(self) -> "CaptureOptions":
        if self.shard >= self.n_shards:
            raise ValueError(f"shards are counted from 0: the last of {self.n_shards} is {self.n_shards - 1}")
        return self
