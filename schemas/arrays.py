"""The arrays of a part: the quantizer between their numbers and codes, and the codec between codes and bytes.

In: what a cache stores (`targets.py`). Out: the `arrays` object of the manifest, from which readers decode.
"""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from kdpipe.schemas.choices import NumberCodec, VectorCodec
from kdpipe.schemas.records import Record
from kdpipe.schemas.targets import HiddenSpec, TargetSpec

CODE_LIMIT = 1 << 16
MISSING = CODE_LIMIT - 1
MINUS_INFINITY = CODE_LIMIT - 2
LARGEST_CODE = CODE_LIMIT - 3
# A chunk is decoded as a whole and the last one of each column is kept: with 64 columns, at most 16 MB per part.
MAX_CHUNK = 1 << 16
MAX_VECTOR_CHUNK_BYTES = 1 << 26
# For tail, entropy, label and boundary: rounding errors are far below the noise of draws, see docs/experiments.md.
SCALAR_STEP = 1 / 64

Step = Annotated[float, Field(ge=2.0**-20, le=1.0)]
PcodecLevel = Annotated[int, Field(ge=0, le=12)]


class CountQuantizer(Record):
    """The code is the number."""

    kind: Literal["count"] = "count"


class RankQuantizer(Record):
    """The code is the rank of a token id in tables/ids_by_rank."""

    kind: Literal["rank"] = "rank"


class LinearQuantizer(Record):
    """value = (code - zero) * step; the code 65535 is NaN, 65534 is minus infinity."""

    kind: Literal["linear"] = "linear"
    step: Step
    zero: int = Field(default=0, ge=0, le=LARGEST_CODE)
    sign: Literal[1, -1] = 1


class LogOddsQuantizer(Record):
    """x = (code - zero) * step are the log-odds, log(1 / (1 + exp(-x))) is the value; special codes as in `linear`."""

    kind: Literal["log_odds"] = "log_odds"
    step: Step
    zero: int = Field(ge=0, le=LARGEST_CODE)


ColumnQuantizer = Annotated[
    CountQuantizer | RankQuantizer | LinearQuantizer | LogOddsQuantizer, Field(discriminator="kind")
]


class Column(Record):
    """One column of the array `row`."""

    name: str = Field(pattern=r"^[a-z_]+(@[0-9.e+-]+)?$", max_length=40)
    quantizer: ColumnQuantizer


class NumberArray(Record):
    """An array of uint32 codes."""

    dtype: Literal["uint32"] = "uint32"
    codec: NumberCodec = "pcodec"
    level: PcodecLevel = 8

    @property
    def codec_options(self) -> dict[str, int]:
        """The options of the codec besides its name."""
        return {"level": self.level}


class RowArray(NumberArray):
    """uint32 [rows, columns], a chunk is `chunk_rows` codes of one column: tokens, mask, counts and scalars."""

    columns: tuple[Column, ...] = Field(min_length=3, max_length=64)
    chunk_rows: int = Field(default=2048, ge=64, le=MAX_CHUNK)


class EntryArray(NumberArray):
    """uint32, one code per entry."""

    chunk_entries: int = Field(default=8192, ge=64, le=MAX_CHUNK)


class IdArray(EntryArray):
    """uint32 [entries]: ranks of the exact ids, most probable first, then draws ascending, as differences."""

    quantizer: RankQuantizer = RankQuantizer()


class TimesArray(EntryArray):
    """uint32 [draws]: how often an id was drawn, minus one."""

    quantizer: CountQuantizer = CountQuantizer()


class LogprobArray(EntryArray):
    """uint32 [values]: codes of log p; the exact ids of a row as differences, draws (with `draw_values`) plain."""

    quantizer: LinearQuantizer = LinearQuantizer(step=1 / 16, sign=-1)


class VectorArray(Record):
    """uint8 [rows, bytes]: the coded vectors of each row, concatenated."""

    dtype: Literal["uint8"] = "uint8"
    codec: VectorCodec = "plain"
    row_bytes: int = Field(ge=1, le=MAX_VECTOR_CHUNK_BYTES)
    chunk_rows: int = Field(default=256, ge=1, le=MAX_CHUNK)

    @property
    def codec_options(self) -> dict[str, int]:
        """The options of the codec besides its name: none."""
        return {}

    @model_validator(mode="after")
    def _bounded(self) -> "VectorArray":
        if self.row_bytes * self.chunk_rows > MAX_VECTOR_CHUNK_BYTES:
            raise ValueError(f"a chunk holds at most {MAX_VECTOR_CHUNK_BYTES:,} bytes")
        return self


class Arrays(Record):
    """The arrays of a part; null for those that the targets do not need."""

    row: RowArray
    id: IdArray | None = None
    times: TimesArray | None = None
    logprob: LogprobArray | None = None
    hidden: VectorArray | None = None
    state: VectorArray | None = None

    @model_validator(mode="after")
    def _distinct(self) -> "Arrays":
        names = [column.name for column in self.row.columns]
        if len(set(names)) != len(names):
            raise ValueError("duplicate column name")
        return self


def log_z_column(temperature: float) -> str:
    """The name of the column that holds log_z at a temperature."""
    return f"log_z@{temperature!r}"


def default_arrays(targets: TargetSpec, hidden: HiddenSpec, vocabulary_size: int) -> Arrays:
    """The arrays of format 1.1 for the contents of a cache."""
    state_bytes = targets.keep.state_bytes
    return Arrays(
        row=RowArray(columns=tuple(_columns(targets, vocabulary_size))),
        id=IdArray() if targets.has_entries else None,
        times=TimesArray() if targets.keep.draws_repeat else None,
        logprob=LogprobArray() if targets.has_entries else None,
        hidden=_vectors([vector.n_bytes for vector in hidden.rows]),
        state=_vectors([state_bytes]),
    )


def _vectors(sizes: list[int]) -> VectorArray | None:
    row_bytes = sum(sizes)
    return VectorArray(row_bytes=row_bytes, chunk_rows=max(1, min(1024, (1 << 16) // row_bytes))) if row_bytes else None


def _columns(targets: TargetSpec, vocabulary_size: int) -> list[Column]:
    """The columns in order, with quantizers wide enough for the largest value of this vocabulary size."""
    columns = [Column(name="token", quantizer=RankQuantizer())]
    columns += [Column(name=name, quantizer=CountQuantizer()) for name in ("loss_mask", "token_bytes")]
    if targets.has_entries:
        columns += [Column(name="n_exact", quantizer=CountQuantizer())]
    if targets.has_draws:
        columns += [Column(name="n_draws", quantizer=CountQuantizer())]
    if targets.tail_known:
        columns += [Column(name="log_tail", quantizer=LogOddsQuantizer(step=SCALAR_STEP, zero=1 << 15))]
        if targets.target_temperature != 1.0:
            columns += [Column(name="drawn_log_tail", quantizer=LogOddsQuantizer(step=SCALAR_STEP, zero=1 << 15))]
    if targets.keep.has_teacher:
        if targets.entropy:
            columns += [Column(name="entropy", quantizer=LinearQuantizer(step=SCALAR_STEP))]
        columns += [Column(name="label_logprob", quantizer=LinearQuantizer(step=SCALAR_STEP, sign=-1))]
    columns += [
        Column(name=log_z_column(t), quantizer=log_z_quantizer(t, vocabulary_size)) for t in targets.temperatures
    ]
    if targets.boundary:
        columns += [Column(name="boundary_logprob", quantizer=LogOddsQuantizer(step=SCALAR_STEP, zero=1 << 15))]
    return columns


def log_z_quantizer(temperature: float, vocabulary_size: int) -> LinearQuantizer:
    """The quantizer of log_z, which is between 0 and (1 - 1/T) log V, with steps of 1/1024 nat."""
    quantizer = LinearQuantizer(step=1 / 1024, sign=1 if temperature > 1 else -1)
    if abs(1 - 1 / temperature) * math.log(vocabulary_size) >= LARGEST_CODE * quantizer.step:
        raise ValueError(
            f"log_z at temperature {temperature!r} does not fit into its codes: choose a higher temperature"
        )
    return quantizer
