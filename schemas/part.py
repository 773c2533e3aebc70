"""part.json: what a committed part holds. Written last inside the part; its sha256 is the part's identity.
`indexes` is the sha256 of the checksums and the index at the end of every array's shard.

In: counts of the writer, or the file. Out: the record that index, reader and verification compare with.
"""

from typing import Annotated

from pydantic import Field, model_validator

from kdpipe.schemas.cache_plan import MAX_PART_ROWS
from kdpipe.schemas.choices import SplitName
from kdpipe.schemas.manifest import FileRecord, Sha256
from kdpipe.schemas.records import Record
from kdpipe.schemas.strict_json import canonical
from kdpipe.schemas.target_kinds import MAX_ENTRIES
from kdpipe.schemas.targets import Temperature

Count = Annotated[int, Field(ge=0, le=1 << 48)]
PartFile = Annotated[str, Field(pattern=r"^[a-z0-9_][a-z0-9_.]{0,39}(/[a-z0-9_][a-z0-9_.]{0,39}){0,4}$")]
# float32 sums of probabilities pass 1 by a little.
LARGEST_SHARE = 1.001
Share = Annotated[float, Field(ge=0, le=LARGEST_SHARE)]
# Codes of log p end at 65,533 steps of at most 1 nat, and estimates may fall below 0 by a little.
Divergence = Annotated[float, Field(ge=-1, le=1 << 17)]
# A position: the entropy of 2^24 equally likely ids is 16.7 nats, and a label_logprob below -255 is not counted.
LARGEST_ENTROPY_NATS, LARGEST_LABEL_NATS = 17.0, 255.0
MAX_PART_FILES = 16
MAX_EXCESS = 1024


class Fidelity(Record):
    """Distance of stored targets to the full distribution, on a sample of rows."""

    n_rows: int = Field(ge=0, le=MAX_PART_ROWS)
    kl_nats: Divergence
    total_variation: Share
    kept_mass: Annotated[tuple[tuple[Temperature, Share], ...], Field(max_length=64)] = ()
    gradient_angle_degrees: Annotated[float, Field(ge=0, le=180)] | None = None

    @model_validator(mode="after")
    def _distinct(self) -> "Fidelity":
        if len({temperature for temperature, _ in self.kept_mass}) != len(self.kept_mass):
            raise ValueError("kept_mass has a duplicate temperature")
        return self


class Statistics(Record):
    """Sums over the rows with loss_mask true, so that parts can be added up."""

    entropy_nats: float | None = None
    label_nats: float | None = None
    label_is_top1: Count | None = None
    tail_mass: float | None = None
    entries: tuple[tuple[Annotated[int, Field(ge=0, le=MAX_ENTRIES)], Count], ...] = Field(
        default=(), max_length=MAX_ENTRIES + 1
    )


class ScaledRows(Record):
    """Rows of a lossy source whose probabilities added up to more than 1 and were scaled to 1; excess is over 1."""

    n_rows: Annotated[int, Field(ge=1, le=MAX_PART_ROWS)]
    largest_excess: Annotated[float, Field(ge=0, le=MAX_EXCESS)]
    median_excess: Annotated[float, Field(ge=0, le=MAX_EXCESS)]


class PartRecord(Record):
    """The whole of part.json; `scaled` is written only where it is not None."""

    manifest_sha256: Sha256
    part: int = Field(ge=0)
    split: SplitName
    first_document: Count
    n_documents: Count
    n_sequences: int = Field(ge=0, le=MAX_PART_ROWS)
    n_rows: int = Field(ge=0, le=MAX_PART_ROWS)
    n_positions: int = Field(ge=0, le=MAX_PART_ROWS)
    n_exact: Count
    n_draws: Count
    n_text_frames: int = Field(default=0, ge=0, le=MAX_PART_ROWS)
    column_bytes: dict[Annotated[str, Field(max_length=40)], Count]
    indexes: dict[Annotated[str, Field(max_length=40)], Sha256]
    statistics: Statistics = Statistics()
    fidelity: Fidelity | None = None
    scaled: ScaledRows | None = None
    batches_halved: Count = 0
    tables: dict[Annotated[str, Field(max_length=64)], FileRecord]
    files: dict[PartFile, FileRecord] = Field(max_length=MAX_PART_FILES)

    @model_validator(mode="after")
    def _ordered(self) -> "PartRecord":
        if not self.n_positions <= self.n_rows:
            raise ValueError("n_positions is above n_rows")
        if self.scaled is not None and self.scaled.n_rows > self.n_positions:
            raise ValueError("more rows are scaled than there are positions")
        if max(self.n_exact, self.n_draws) > self.n_rows * MAX_ENTRIES:
            raise ValueError("there are more entries than rows can hold")
        _check_sums(self.statistics, self.n_positions, self.n_entries)
        return self

    def to_json(self) -> bytes:
        """The record as canonical JSON."""
        return canonical(self.model_dump(mode="json", exclude={"scaled"} if self.scaled is None else None))

    @property
    def n_entries(self) -> int:
        """Exact ids and draws together."""
        return self.n_exact + self.n_draws

    @property
    def n_bytes(self) -> int:
        """Bytes of the part's files without part.json."""
        return sum(file.bytes for file in self.files.values())


def _check_sums(sums: Statistics, n_positions: int, n_entries: int) -> None:
    """Check that sums are possible for this number of positions, within rounding."""
    for name, most in (
        ("entropy_nats", LARGEST_ENTROPY_NATS),
        ("label_nats", LARGEST_LABEL_NATS),
        ("tail_mass", LARGEST_SHARE),
    ):
        value = getattr(sums, name)
        if value is not None and not -0.01 * n_positions <= value <= most * n_positions:
            raise ValueError(f"statistics.{name} is {value:g}, {n_positions:,} positions allow 0 to {most:g} each")
    if (sums.label_is_top1 or 0) > n_positions:
        raise ValueError(f"statistics.label_is_top1 is {sums.label_is_top1}, of {n_positions:,} positions")
    counts = [count for count, _ in sums.entries]
    if counts != sorted(set(counts)):
        raise ValueError("statistics.entries does not ascend")
    rows, entries = sum(rows for _, rows in sums.entries), sum(count * rows for count, rows in sums.entries)
    if sums.entries and (rows, entries) != (n_positions, n_entries):
        raise ValueError(
            f"statistics.entries counts {rows:,} positions with {entries:,} entries, there are {n_positions:,} with "
            f"{n_entries:,}"
        )
