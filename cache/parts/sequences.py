"""sequences.arrow: the position of each sequence in its part, and the stored columns of its documents.

In: the sequences of a part as stage one made them. Out: row and entry offsets, document starts, columns, pooled states.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from kdpipe.cache.format.quantizers import dequantize_vectors, quantize_vectors
from kdpipe.cache.format.rows import Floats, Sequence
from kdpipe.cache.parts.arrow_files import Field, IpcTable, write_ipc
from kdpipe.schemas.errors import CacheDamaged
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.part import PartRecord

DIGEST_BYTES = 16
# A sequence is read as a whole, at some 40 bytes per entry: a file of a few bytes may not ask for more than 3 GB.
MAX_SEQUENCE_ENTRIES = 1 << 26


def fields(manifest: Manifest) -> list[Field]:
    """The columns of sequences.arrow for a cache."""
    fields = [
        Field(name="n_rows", type="uint32"),
        Field(name="exact_start", type="uint64"),
        Field(name="draw_start", type="uint64"),
        Field(name="document_starts", type="uint32", listed=True),
        Field(name="documents", type="uint64", listed=True),
        Field(name="digests", type="fixed", width=DIGEST_BYTES, listed=True),
    ]
    if manifest.hidden.pooled:
        width = sum(vector.n_bytes for vector in manifest.hidden.pooled)
        fields.append(Field(name="pooled", type="fixed", width=width, listed=True))
    fields += [
        Field(name=f"column:{column.name}", type=column.type, listed=True, nullable=True)
        for column in manifest.data.columns
    ]
    return fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the documents of one sequence begin, and what is kept of them; pooled states are coded, a row each."""

    n_rows: int
    document_starts: npt.NDArray[Any]
    documents: npt.NDArray[Any]
    digests: npt.NDArray[np.uint8]
    pooled: npt.NDArray[np.uint8]
    columns: Mapping[str, list[Any]]

    @classmethod
    def of(cls, sequence: Sequence, manifest: Manifest) -> "Places":
        """Those of a sequence, its pooled states coded."""
        coded = [quantize_vectors(sequence.pooled[v.layer], v.group) for v in manifest.hidden.pooled]
        n_documents = len(sequence.document_starts)
        return cls(
            n_rows=len(sequence.tokens),
            document_starts=sequence.document_starts,
            documents=sequence.documents,
            digests=sequence.digests,
            pooled=np.concatenate([np.zeros((n_documents, 0), np.uint8), *coded], axis=1),
            columns=sequence.columns,
        )


class SequencesWriter:
    """Gathers the sequences of a part."""

    def __init__(self, manifest: Manifest, first_document: int) -> None:
        self._manifest, self._first_document = manifest, first_document
        self._fields = fields(manifest)
        self._scalars: list[tuple[int, int, int, int]] = []
        self._listed: dict[str, list[Any]] = {field.name: [] for field in self._fields if field.listed}

    def add(self, places: Places, exact_start: int, draw_start: int) -> None:
        """Take a sequence whose entries begin at the given places."""
        self._scalars.append((places.n_rows, exact_start, draw_start, len(places.document_starts)))
        self._listed["document_starts"].append(np.asarray(places.document_starts, np.uint32))
        # Counted from the part's first: a part that moves to another cache keeps its bytes.
        numbers = np.asarray(places.documents, np.int64) - self._first_document
        self._listed["documents"].append(numbers.astype(np.uint64))
        self._listed["digests"].append(places.digests)
        if "pooled" in self._listed:
            self._listed["pooled"].append(places.pooled)
        for column in self._manifest.data.columns:
            self._listed[f"column:{column.name}"].extend(places.columns[column.name])

    def write(self, file: BinaryIO) -> None:
        """Write them all."""
        scalars = np.array(self._scalars, np.int64).reshape(-1, 4)
        columns: dict[str, Any] = {
            "n_rows": scalars[:, 0].astype(np.uint32),
            "exact_start": scalars[:, 1].astype(np.uint64),
            "draw_start": scalars[:, 2].astype(np.uint64),
        }
        for field in self._fields:
            if field.listed:
                values = self._listed[field.name]
                is_column = field.name.startswith("column:")
                columns[field.name] = values if is_column else _joined(values, field)
        offsets = np.concatenate([[0], np.cumsum(scalars[:, 3])]).astype(np.int32)
        write_ipc(file, self._fields, columns, offsets)


def _joined(arrays: list[Any], field: Field) -> Any:
    if arrays:
        return np.concatenate(arrays)
    return np.zeros((0, field.width), np.uint8) if field.type == "fixed" else np.zeros(0, field.type)


class Sequences:
    """The sequences of a part, with every place checked against the part's counts."""

    def __init__(self, data: memoryview, manifest: Manifest, record: PartRecord, what: str) -> None:
        self._table = IpcTable(data, fields(manifest), record.n_sequences, what)
        self._manifest = manifest
        self._what = what
        self.row_starts = _starts(self._table.numbers("n_rows"), record.n_rows, "n_rows", what)
        self.exact_starts = self._entry_starts("exact_start", record.n_exact)
        self.draw_starts = self._entry_starts("draw_start", record.n_draws)
        self._check_sizes(manifest)
        self.document_offsets = self._table.offsets("document_starts")
        self.document_starts = self._table.numbers("document_starts").astype(np.int64)
        within = self._table.numbers("documents")
        if (within >= max(record.n_documents, 1)).any():
            raise CacheDamaged(f"{what}: a document is outside the {record.n_documents:,} of its part")
        self.documents = within.astype(np.int64) + record.first_document
        self._check_documents()

    def __len__(self) -> int:
        return len(self.row_starts) - 1

    def _entry_starts(self, name: str, total: int) -> npt.NDArray[np.int64]:
        stated = self._table.numbers(name)
        if (stated > total).any():
            raise CacheDamaged(f"{self._what}: {name} is beyond the part's {total:,} entries")
        starts = np.concatenate([stated.astype(np.int64), [total]])
        if (np.diff(starts) < 0).any() or starts[0] != 0:
            raise CacheDamaged(f"{self._what}: {name} does not ascend from 0")
        return starts

    def _check_sizes(self, manifest: Manifest) -> None:
        """No sequence is longer than planned, or keeps more than its rows can."""
        lengths = np.diff(self.row_starts)
        entries = np.diff(self.exact_starts) + np.diff(self.draw_starts)
        if (lengths > manifest.plan.sequence_length).any():
            raise CacheDamaged(f"{self._what}: a sequence is longer than the planned {manifest.plan.sequence_length:,}")
        if (entries > np.minimum(lengths * manifest.targets.max_entries, MAX_SEQUENCE_ENTRIES)).any():
            raise CacheDamaged(f"{self._what}: a sequence has more entries than its rows can keep")

    def _check_documents(self) -> None:
        """Documents begin at ascending rows, the first at row 0."""
        for field in fields(self._manifest):
            if field.listed and not np.array_equal(self._table.offsets(field.name), self.document_offsets):
                raise CacheDamaged(f"{self._what}: {field.name} has other list lengths than document_starts")
        offsets, starts = self.document_offsets, self.document_starts
        lengths = np.diff(self.row_starts)
        if (np.diff(offsets) < 1).any() or (starts[offsets[:-1]] != 0).any():
            raise CacheDamaged(f"{self._what}: a sequence does not begin with a document")
        inner = np.ones(len(starts), bool)
        inner[offsets[:-1]] = False
        steps = np.diff(starts, prepend=0)
        if (steps[inner] <= 0).any() or (starts[offsets[1:] - 1] >= lengths).any():
            raise CacheDamaged(f"{self._what}: document starts do not ascend within their sequence")

    def digests(self) -> npt.NDArray[np.uint8]:
        """The digest of every document, 16 bytes per row."""
        return self._table.fixed("digests", DIGEST_BYTES)

    def column(self, name: str, start: int, stop: int) -> list[Any]:
        """A source column for some documents, counted through the part."""
        return self._table.values(f"column:{name}", start, stop)

    def pooled(self, start: int, stop: int) -> dict[int, Floats]:
        """The pooled states of some documents, by layer."""
        vectors = self._manifest.hidden.pooled
        return split_vectors(self.coded_pooled(start, stop), vectors) if vectors else {}

    def coded_pooled(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """The same as they are coded, the layers of a document in sequence; no bytes without pooled layers."""
        width = sum(vector.n_bytes for vector in self._manifest.hidden.pooled)
        return self._table.fixed("pooled", width)[start:stop] if width else np.zeros((stop - start, 0), np.uint8)


def split_vectors(coded: npt.NDArray[np.uint8], vectors: tuple[Any, ...]) -> dict[int, Floats]:
    """Decode vectors that lie one behind the other in each row."""
    by_layer, place = {}, 0
    for vector in vectors:
        by_layer[vector.layer] = dequantize_vectors(
            coded[:, place : place + vector.n_bytes], vector.width, vector.group
        )
        place += vector.n_bytes
    return by_layer


def _starts(lengths: npt.NDArray[Any], total: int, name: str, what: str) -> npt.NDArray[np.int64]:
    starts = np.concatenate([[0], np.cumsum(lengths.astype(np.int64))])
    if (lengths == 0).any() or starts[-1] != total:
        raise CacheDamaged(f"{what}: {name} adds up to {starts[-1]:,}, the part has {total:,} rows")
    return starts
