"""The first of two passes over a source: read and check every row before anything is written.

In: files and their format. Out: `SourceSurvey`: the position, length and split of each row, and what the manifest
needs. A row goes to validation by the digest of its tokens, as documents do in `cache-teacher`.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.pipeline.documents.columns import BadRow
from kdpipe.pipeline.documents.document_duplicates import count_duplicates
from kdpipe.pipeline.documents.row_files import Row, RowFile
from kdpipe.pipeline.interop.validated_row import ValidatedRow
from kdpipe.schemas.choices import SplitName
from kdpipe.schemas.errors import ConfigError

Longs = npt.NDArray[np.int64]
Read = Callable[[Row], ValidatedRow]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repairs:
    """Counts of dropped entries, rows without targets and scaled rows."""

    n_padding: int
    n_without_targets: int
    n_scaled: int
    largest_excess: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSurvey:
    """All rows of a source; arrays have one value per row, in the order of the files."""

    files: npt.NDArray[np.uint32]
    positions: npt.NDArray[np.uint64]
    numbers: npt.NDArray[np.uint32]
    sizes: npt.NDArray[np.uint32]
    in_validation: npt.NDArray[np.bool_]
    token_counts: Longs
    longest: int
    most_ids: int
    trains_all: bool
    n_positions: int
    fingerprint: str
    repairs: Repairs
    duplicates: dict[SplitName, int]

    def rows_of(self, split: SplitName) -> Longs:
        """The indices of a split's rows, in order."""
        return np.flatnonzero(self.in_validation == (split == "validation"))


def survey_rows(
    files: Sequence[RowFile], read: Callable[[int], Read], n_ids: int, limit: int | None, val_fraction: float
) -> SourceSurvey:
    """Check all rows, or the first `limit`; `read` returns the parser of a file's rows."""
    surveyor = _Surveyor(n_ids)
    for number, file in enumerate(files):
        parse = read(number)
        for row in file.rows():
            if limit is not None and len(surveyor.sizes) >= limit:
                return surveyor.finish(val_fraction)
            surveyor.add(number, row, parse(row))
    if not surveyor.sizes:
        raise ConfigError("the source has no rows", hint="check the path")
    return surveyor.finish(val_fraction)


def row_parser(name: str, read: Callable[[dict[str, Any]], ValidatedRow]) -> Read:
    """A parser of a file's rows whose errors name the file and the row."""

    def parse(row: Row) -> ValidatedRow:
        try:
            if row.columns is None:
                raise BadRow(row.problem)
            return read(row.columns)
        except BadRow as problem:
            raise ConfigError(f"{name}, row {row.number:,}: {problem}", hint="fix the row or remove it") from None

    return parse


@dataclass(slots=True)
class _Surveyor:
    """Accumulates what is needed of each row."""

    n_ids: int
    sizes: "array[int]" = field(default_factory=lambda: array("I"))
    _files: "array[int]" = field(default_factory=lambda: array("I"))
    _positions: "array[int]" = field(default_factory=lambda: array("Q"))
    _numbers: "array[int]" = field(default_factory=lambda: array("I"))
    _chances: "array[int]" = field(default_factory=lambda: array("Q"))
    _token_counts: Longs = field(init=False)
    _digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    _most_ids: int = 1
    _n_positions: int = 0
    _n_trainable: int = 0
    _repairs: list[int] = field(default_factory=lambda: [0, 0, 0])
    _largest_excess: float = 0.0

    def __post_init__(self) -> None:
        self._token_counts = np.zeros(self.n_ids, np.int64)

    def add(self, file: int, row: Row, parsed: ValidatedRow) -> None:
        digest = digest_of(parsed.tokens)
        for values in (parsed.tokens, parsed.loss_mask, parsed.starts, parsed.counts, parsed.ids, parsed.logprobs):
            self._digest.update(np.ascontiguousarray(values).tobytes())
        self._files.append(file)
        self._positions.append(row.position)
        self._numbers.append(row.number)
        self.sizes.append(len(parsed.tokens))
        self._chances.append(int.from_bytes(digest[:8], "big"))
        self._token_counts += np.bincount(parsed.tokens, minlength=self.n_ids)
        self._most_ids = max(self._most_ids, int(parsed.counts.max(initial=0)))
        self._n_positions += int(parsed.loss_mask.sum())
        self._n_trainable += len(parsed.tokens) - len(parsed.starts) - parsed.n_without_targets
        for place, n in enumerate((parsed.n_padding, parsed.n_without_targets, len(parsed.excess))):
            self._repairs[place] += n
        self._largest_excess = max(self._largest_excess, float(parsed.excess.max(initial=0.0)))

    def finish(self, val_fraction: float) -> SourceSurvey:
        chances = np.array(self._chances, np.uint64)
        padding, without_targets, scaled = self._repairs
        in_validation = chances.astype(np.float64) < val_fraction * 2.0**64
        self._digest.update(np.packbits(in_validation).tobytes())
        return SourceSurvey(
            files=np.array(self._files, np.uint32),
            positions=np.array(self._positions, np.uint64),
            numbers=np.array(self._numbers, np.uint32),
            sizes=np.array(self.sizes, np.uint32),
            in_validation=in_validation,
            token_counts=self._token_counts,
            longest=max(self.sizes),
            most_ids=self._most_ids,
            trains_all=self._n_positions == self._n_trainable,
            n_positions=self._n_positions,
            fingerprint=self._digest.hexdigest(),
            repairs=Repairs(
                n_padding=padding,
                n_without_targets=without_targets,
                n_scaled=scaled,
                largest_excess=self._largest_excess,
            ),
            duplicates=count_duplicates(chances, in_validation),
        )


def digest_of(tokens: npt.NDArray[np.int32]) -> bytes:
    """The sha256 of tokens as little-endian uint32."""
    return hashlib.sha256(tokens.astype("<u4").tobytes()).digest()


def rows_again(
    files: Sequence[RowFile], survey: SourceSurvey, places: Longs, read: Callable[[int], Read]
) -> Iterator[ValidatedRow]:
    """Read the rows at some indices of a survey again, in order."""
    for number in np.unique(survey.files[places]).tolist():
        here = places[survey.files[places] == number]
        positions = survey.positions[here].astype(np.int64).tolist()
        parse = read(number)
        for place, position, columns in zip(here.tolist(), positions, files[number].columns_at(positions), strict=True):
            yield parse(Row(number=int(survey.numbers[place]), position=position, columns=columns))
