"""Settings and reports of `cache merge`, `cache subset` and `cache requantize`."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError

from kdpipe.schemas.capture_report import PartCounts
from kdpipe.schemas.choices import DocumentMeasure, Dropped, RequantizedKind, ReshapeAction, SplitName
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.records import Record, explain
from kdpipe.schemas.target_kinds import MAX_ENTRIES


class ReshapeReport(Record):
    """The result: `adopted` and `rewritten` count parts, `left_out` the documents of the sources that the new cache
    does not have."""

    action: ReshapeAction
    cache: str
    cache_id: str
    sources: tuple[str, ...]
    parts: PartCounts
    adopted: int
    rewritten: int
    documents: int
    left_out: int
    positions: int
    bytes: int
    seconds: float


class Bounds(Record):
    """The range [first, end); None for an open end."""

    first: int | None = None
    end: int | None = None

    def holds(self, number: int) -> bool:
        return (self.first is None or number >= self.first) and (self.end is None or number < self.end)

    def __str__(self) -> str:
        return f"{'' if self.first is None else self.first}:{'' if self.end is None else self.end}"


class DocumentSelection(Record):
    """A selection of documents: those that meet every condition.

    `where` has column names and values as given on the command line. `lowest` and `highest` are shares of the documents
    that meet the other conditions.
    """

    split: SplitName | None = None
    parts: Bounds | None = None
    documents: Bounds | None = None
    where: tuple[tuple[str, str], ...] = ()
    by: DocumentMeasure | None = None
    lowest: float | None = None
    highest: float | None = None
    at_least: float | None = None
    at_most: float | None = None

    def __str__(self) -> str:
        lines = [f"{name} {value}" for name in ("split", "parts", "documents") if (value := getattr(self, name))]
        lines += [f"where {name}={value}" for name, value in self.where]
        names = ("lowest", "highest", "at_least", "at_most")
        bounds = [f"{name.replace('_', ' ')} {value!r}" for name in names if (value := getattr(self, name)) is not None]
        return "; ".join([*lines, *([f"{self.by}: {', '.join(bounds)}"] if self.by else [])])


class RequantizeSpec(Record):
    """What a requantized cache keeps; None leaves a setting unchanged.

    `seed` is that of resampled ids [the source's].
    """

    targets: RequantizedKind | None = None
    tau: float | None = Field(default=None, gt=0, le=1)
    draws: int | None = Field(default=None, ge=1, le=MAX_ENTRIES - 1)
    top_k: int | None = Field(default=None, ge=1, le=MAX_ENTRIES)
    top_p: float | None = Field(default=None, gt=0, le=1)
    temperatures: tuple[float, ...] | None = None
    drop: tuple[Dropped, ...] = ()
    seed: int | None = Field(default=None, ge=0, lt=1 << 63)


def requantize_spec(typed: Mapping[str, Any]) -> RequantizeSpec:
    """Validate the options of the command."""
    try:
        return RequantizeSpec.model_validate(typed)
    except ValidationError as error:
        raise ConfigError(explain(RequantizeSpec, error), hint="see `kdpipe cache requantize --help`") from None
