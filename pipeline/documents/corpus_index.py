"""The document index: one pass over all rows, without tokenizing.

In: files of rows. Out: `Index`: position, size and split of each document in about 25 bytes (33 while it is built), and
the data's fingerprint.
"""

import hashlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from kdpipe.pipeline.documents.columns import BadRow, ColumnMapping, Document
from kdpipe.pipeline.documents.document_duplicates import count_duplicates
from kdpipe.pipeline.documents.row_files import Row, RowFile
from kdpipe.pipeline.documents.text_ranges import ranges_of
from kdpipe.schemas.cache_plan import MAX_SEQUENCE_ROWS
from kdpipe.schemas.capture_settings import DataSettings
from kdpipe.schemas.choices import SplitName
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.manifest import SourceColumn
from kdpipe.schemas.strict_json import canonical

ColumnType = Literal["string", "int64", "float64", "bool"]
# Most tokens that a tokenizer adds around a document.
ADDED_TOKENS = 8
SHOWN_BAD_ROWS = 3
KEPT_BAD_ROWS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """Arrays with one value per document, in the order of the data.

    `sizes` are upper bounds of the bytes of rendered documents. `duplicates` counts, per split, documents that may have
    the tokens of an earlier one. If long rows are cut, `ranges` has the characters [start, end) of each document in its
    row, and `n_ranges` documents come from `n_cut_rows` rows.
    """

    files: npt.NDArray[np.uint32]
    positions: npt.NDArray[np.uint64]
    numbers: npt.NDArray[np.uint32]
    sizes: npt.NDArray[np.uint32]
    in_validation: npt.NDArray[np.bool_]
    columns: tuple[SourceColumn, ...]
    n_bad_rows: int
    bad_rows: tuple[str, ...]
    fingerprint: str
    duplicates: dict[SplitName, int] | None = None
    ranges: npt.NDArray[np.uint32] | None = None
    n_cut_rows: int = 0
    n_ranges: int = 0

    def of_row(self, document: int, row: Document) -> Document:
        """A document, from that of its whole row."""
        return row if self.ranges is None else row.part(*self.ranges[document].tolist())

    def documents(self, split: SplitName) -> npt.NDArray[np.int64]:
        """The documents of a split, as indices into the arrays."""
        return np.flatnonzero(self.in_validation == (split == "validation"))


@dataclass(slots=True)
class _Columns:
    """The types of kept columns, widened as values are seen."""

    types: dict[str, ColumnType | None]

    def take(self, document: Document, place: str) -> None:
        for name, value in document.columns.items():
            if value is not None:
                self.types[name] = _common_type(self.types[name], value, name, place)

    def records(self) -> tuple[SourceColumn, ...]:
        return tuple(SourceColumn(name=name, type=kind or "string") for name, kind in self.types.items())


def _common_type(known: ColumnType | None, value: Any, name: str, place: str) -> ColumnType:
    kinds: dict[type, ColumnType] = {str: "string", bool: "bool", int: "int64", float: "float64"}
    kind = kinds.get(type(value))
    drop = "remove it from data.columns.keep"
    if kind is None or (kind == "int64" and not -(1 << 63) <= value < 1 << 63):
        raise ConfigError(
            f"{place}: the kept column {name!r} has a value of type {type(value).__name__},"
            f" supported: {', '.join(get_args(ColumnType))}",
            hint=drop,
        )
    if known in (None, kind):
        return kind
    if {known, kind} == {"int64", "float64"}:
        return "float64"
    raise ConfigError(f"{place}: the kept column {name!r} has a value of type {kind}, earlier ones {known}", hint=drop)


@dataclass(slots=True)
class Indexer:
    """Builds an `Index` row by row; `mappings` has one per file, `n_held_out` the number of held-out ranges per row."""

    mappings: Sequence[ColumnMapping]
    settings: DataSettings
    max_bytes: Callable[[Document], int]
    key_of: Callable[[str], int] | None = None
    n_held_out: npt.NDArray[np.int64] | None = None
    _files: "array[int]" = field(default_factory=lambda: array("I"))
    _positions: "array[int]" = field(default_factory=lambda: array("Q"))
    _numbers: "array[int]" = field(default_factory=lambda: array("I"))
    _sizes: "array[int]" = field(default_factory=lambda: array("I"))
    _keys: "array[int]" = field(default_factory=lambda: array("Q"))
    _ranges: "array[int]" = field(default_factory=lambda: array("I"))
    _validation: bytearray = field(default_factory=bytearray)
    _n_rows: int = 0
    _n_cut_rows: int = 0
    _n_ranges: int = 0
    _columns: _Columns = field(init=False)
    _digest: Any = field(default_factory=hashlib.sha256)
    _lowest: int = 1 << 64
    _lowest_at: list[int] = field(default_factory=list)
    _bad: list[str] = field(default_factory=list)
    _n_bad: int = 0

    def __post_init__(self) -> None:
        kept = dict.fromkeys(name for mapping in self.mappings for name in mapping.keep)
        for name in kept:
            if not name.isidentifier() or not name.isascii() or len(name) > 64:
                raise ConfigError(
                    f"the column {name!r} cannot be kept: names may have at most 64 letters, digits and _",
                    hint="rename it, or remove it from data.columns.keep",
                )
        self._columns = _Columns(dict.fromkeys(kept))

    def read(self, files: Sequence[RowFile], first_file: int = 0, split: SplitName | None = None) -> int:
        """Index the rows of some files, into `split` if given; return the number of documents."""
        before = self._n_rows
        most = self.settings.limit if split != "validation" else None
        for number, file in enumerate(files, first_file):
            for row in file.rows():
                if most is not None and self._n_rows - before >= most:
                    return most
                self._take(row, number, f"{file.name}:{row.number}", split)
        return self._n_rows - before

    def _take(self, row: Row, file: int, place: str, split: SplitName | None) -> None:
        try:
            document, size, digest = self._document(row, self.mappings[file], place)
        except BadRow as problem:
            self._count_bad(f"{place}: {problem}")
            return
        text, share = document.text or "", self.settings.val_fraction
        n_held_out = 0 if self.n_held_out is None else int(self.n_held_out[self._n_rows])
        self._n_rows += 1
        if n_held_out:
            ranges = ranges_of(text, n_held_out, share)
            self._n_cut_rows += 1
            self._n_ranges += len(ranges)
            for span in ranges:
                part = document.part(span.start, span.end)
                self._add(row, file, part, self.max_bytes(part), span.held_out)
                self._ranges.extend((span.start, span.end))
            return
        is_held_out = self._is_held_out(digest) if split is None else split == "validation"
        self._add(row, file, document, size, is_held_out)
        self._ranges.extend((0, len(text)) if self.n_held_out is not None else ())

    def _is_held_out(self, digest: bytes) -> bool:
        """Whether a document falls into validation, by the hash of its content; where the lowest was is remembered."""
        chance = int.from_bytes(digest[:8], "big")
        if chance <= self._lowest:
            self._lowest_at = [] if chance < self._lowest else self._lowest_at
            self._lowest_at.append(len(self._sizes))
            self._lowest = chance
        return chance < self.settings.val_fraction * 2.0**64

    def _add(self, row: Row, file: int, document: Document, size: int, is_held_out: bool) -> None:
        self._files.append(file)
        self._positions.append(row.position)
        self._numbers.append(row.number)
        self._sizes.append(size)
        self._validation.append(is_held_out)
        if self.key_of is not None and document.text is not None:
            self._keys.append(self.key_of(document.text))

    def _document(self, row: Row, mapping: ColumnMapping, place: str) -> tuple[Document, int, bytes]:
        """A valid row's document, its largest size and digest."""
        if row.columns is None:
            raise BadRow(row.problem)
        document = mapping.document(row.columns)
        most = self.settings.max_document_bytes
        try:
            n_bytes = document.n_bytes
            if n_bytes > most:
                raise BadRow(f"{n_bytes:,} bytes, at most {most:,} are allowed; only text files are cut")
            digest = document.digest()
            self._columns.take(document, place)
            kept = canonical(document.columns)
        except BadRow:
            raise
        except UnicodeEncodeError:
            raise BadRow("a lone surrogate, which is not valid UTF-8") from None
        except (ValueError, TypeError, RecursionError) as error:
            raise BadRow(f"a value that JSON cannot represent: {error}") from None
        size = self.max_bytes(document)
        if size + ADDED_TOKENS > MAX_SEQUENCE_ROWS:
            raise BadRow(f"{len(document.messages):,} messages, too many for one part")
        self._digest.update(digest + kept)
        return document, size, digest

    def _count_bad(self, what: str) -> None:
        self._n_bad += 1
        if len(self._bad) < KEPT_BAD_ROWS:
            self._bad.append(what)
        most = self.settings.max_bad_rows
        if self._n_bad > most:
            first = "; ".join(self._bad[:SHOWN_BAD_ROWS])
            what = "invalid row" if most == 0 else f"more than {most:,} invalid rows. The first"
            raise ConfigError(f"{what}: {first}", hint="fix them, or skip up to N of them with --max-bad-rows N")

    def finish(self, made_with: dict[str, Any]) -> Index:
        """The finished index; `made_with` is what else the documents' tokens depend on."""
        in_validation = np.frombuffer(bytes(self._validation), np.bool_).copy()
        # Documents equal to the one with the lowest hash move with it, unless no training document would remain.
        by_chance = self.settings.val_path is None and self.settings.val_fraction > 0
        if by_chance and not in_validation.any() and len(self._lowest_at) < len(in_validation):
            in_validation[self._lowest_at] = True
        self._digest.update(canonical(made_with) + np.packbits(in_validation).tobytes())
        ranges = None if self.n_held_out is None else np.array(self._ranges, np.uint32).reshape(-1, 2)
        if ranges is not None:
            self._digest.update(ranges.astype("<u4").tobytes())
        return Index(
            files=np.array(self._files, np.uint32),
            positions=np.array(self._positions, np.uint64),
            numbers=np.array(self._numbers, np.uint32),
            sizes=np.array(self._sizes, np.uint32),
            in_validation=in_validation,
            columns=self._columns.records(),
            n_bad_rows=self._n_bad,
            bad_rows=tuple(self._bad),
            fingerprint=self._digest.hexdigest(),
            duplicates=None if self.key_of is None else count_duplicates(self._keys, in_validation),
            ranges=ranges,
            n_cut_rows=self._n_cut_rows,
            n_ranges=self._n_ranges,
        )
