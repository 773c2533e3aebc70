"""What the commands that make caches from caches are told and answer with: `cache merge`, `subset`, `requantize`.

In: what a person chooses, and what `cache/reshape` and `pipeline/requantize.py` did. Out: `DocumentSelection`, and the
JSON document of `--json`, key by key.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError

from kdpipe.schemas.capture_report import PartsMade
from kdpipe.schemas.choices import DocumentMeasure, Dropped, RequantizedKind, ReshapeAction, SplitName
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.records import Record, explain
from kdpipe.schemas.targets import MAX_ENTRIES


class ReshapeReport(Record):
    """The whole answer; `adopted` and `rewritten` count the parts of the plan, `left_out` the documents of the sources
    that the new cache does not have."""

    action: ReshapeAction
    cache: str
    cache_id: str
    sources: tuple[str, ...]
    parts: PartsMade
    adopted: int
    rewritten: int
    documents: int
    left_out: int
    positions: int
    bytes: int
    seconds: float


class Bounds(Record):
    """From `first` on, and before `end`; None where the one or the other is left open."""

    first: int | None = None
    end: int | None = None

    def holds(self, number: int) -> bool:
        """Whether a number lies within."""
        return (self.first is None or number >= self.first) and (self.end is None or number < self.end)

    def __str__(self) -> str:
        return f"{'' if self.first is None else self.first}:{'' if self.end is None else self.end}"


class DocumentSelection(Record):
    """Which documents of a cache are wanted: those that every condition holds for.

    `where` has names of columns and values as they were typed. `lowest` and `highest` are shares of the documents that
    the other conditions leave.
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
        told = [f"{name} {value}" for name in ("split", "parts", "documents") if (value := getattr(self, name))]
        told += [f"where {name}={value}" for name, value in self.where]
        names = ("lowest", "highest", "at_least", "at_most")
        bounds = [f"{name.replace('_', ' ')} {value!r}" for name in names if (value := getattr(self, name)) is not None]
        return "; ".join([*told, *([f"{self.by}: {', '.join(bounds)}"] if self.by else [])])


class RequantizeSpec(Record):
    """What a cache is to keep less of; None leaves it as it is.

    `draws` are drawn with `seed`, that of the source by itself.
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
    """From what a person typed."""
    try:
        return RequantizeSpec.model_validate(typed)
    except ValidationError as error:
        raise ConfigError(explain(RequantizeSpec, error), hint="see `kdpipe cache requantize --help`") from None
