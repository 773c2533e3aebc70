"""The deep level, across parts: documents that occur more than once in a split, compared with the plan.

In: a store, and the parts whose rows are good. Out: a problem for each split with more duplicates than planned, a note
for each split with any. This finds a part that was copied over another one for every kind of targets, if the plan
states the number of duplicates. sequences.arrow is read again here, since a process that decodes rows may crash.
Memory: about 60 bytes per document.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, final

import numpy as np
import numpy.typing as npt

from kdpipe.cache import layout
from kdpipe.cache.parts.part_files import part_problem
from kdpipe.cache.parts.sequences import DIGEST_BYTES, Sequences
from kdpipe.cache.stores.protocol import Store
from kdpipe.schemas.cache_plan import SplitPlan
from kdpipe.schemas.counts import counted
from kdpipe.schemas.errors import CacheDamaged
from kdpipe.schemas.manifest import Manifest
from kdpipe.schemas.part import PartRecord
from kdpipe.schemas.strict_json import sha256_hex
from kdpipe.schemas.verify_report import Note, Problem

SHOWN: Final = 4
LISTED: Final = ("numbers", "places", "first_numbers", "first_places", "whole")
Longs = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Documents:
    """A value for each document, ascending by number: `high` and `low` are the sums of the digests of its segments.

    `whole` is false where every segment fills its sequence: such a document may have been truncated, so equal digests
    do not prove that the documents are equal.
    """

    numbers: Longs
    high: npt.NDArray[np.uint64]
    low: npt.NDArray[np.uint64]
    whole: npt.NDArray[np.bool_]


@final
class Duplicates:
    """Counts duplicates among the documents of the added parts."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._problems: list[Problem] = []
        self._by_split: dict[str, list[tuple[int, _Documents]]] = {split.name: [] for split in manifest.plan.splits}

    def add(self, store: Store, record: PartRecord) -> None:
        """Add the documents of a part."""
        try:
            self._by_split[record.split].append((record.part, _documents(store, self._manifest, record)))
        except CacheDamaged as error:
            self._problems.append(part_problem(record.part, layout.SEQUENCES, error.message))

    def findings(self) -> tuple[list[Problem], list[Note]]:
        """The problems and notes of each split."""
        problems, notes = list(self._problems), list[Note]()
        for split in self._manifest.plan.splits:
            repeated = _RepeatedDocuments.of(self._by_split[split.name])
            if split.duplicates is not None and (certain := repeated.only_whole()).n > split.duplicates:
                problems.append(certain.problem(split.duplicates))
            elif repeated.n:
                notes.append(repeated.note(split))
        return problems, notes


def _documents(store: Store, manifest: Manifest, record: PartRecord) -> _Documents:
    """The documents of a part, with the segments of each combined."""
    file = record.files[layout.SEQUENCES]
    data = store.view(f"{layout.part_dir(record.part)}/{layout.SEQUENCES}", file.bytes)
    if sha256_hex(data) != file.sha256:
        raise CacheDamaged("its bytes are not those that were written (sha256 differs)")
    places = Sequences(data, manifest, record, layout.SEQUENCES)
    firsts = np.repeat(places.row_starts[:-1], np.diff(places.document_offsets))
    lengths = np.diff(places.document_starts + firsts, append=places.row_starts[-1])
    digests = np.ascontiguousarray(places.digests()).reshape(-1, DIGEST_BYTES).view("<u8")
    order = np.argsort(places.documents, kind="stable")
    numbers, begins = np.unique(places.documents[order], return_index=True)
    if not len(numbers):
        return _Documents(numbers=numbers, high=digests[:, 0], low=digests[:, 1], whole=np.zeros(0, bool))
    return _Documents(
        numbers=numbers,
        high=np.add.reduceat(digests[order, 0], begins),
        low=np.add.reduceat(digests[order, 1], begins),
        whole=np.minimum.reduceat(lengths[order], begins) < manifest.plan.sequence_length,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _RepeatedDocuments:
    """Documents with the tokens of an earlier one, ascending: `places` are indexes into `parts`, `first_*` describe the
    first document with the same tokens."""

    parts: Sequence[int]
    sizes: Longs
    numbers: Longs
    places: Longs
    first_numbers: Longs
    first_places: Longs
    whole: npt.NDArray[np.bool_]

    @property
    def n(self) -> int:
        return len(self.numbers)

    def only_whole(self) -> "_RepeatedDocuments":
        """Those that were certainly not truncated."""
        return replace(self, **{name: getattr(self, name)[self.whole] for name in LISTED})

    @classmethod
    def of(cls, parts: Sequence[tuple[int, _Documents]]) -> "_RepeatedDocuments":
        """Find them among the documents of some parts of a split."""
        numbers = _joined([documents.numbers for _, documents in parts], np.int64)
        high = _joined([documents.high for _, documents in parts], np.uint64)
        low = _joined([documents.low for _, documents in parts], np.uint64)
        whole = _joined([documents.whole for _, documents in parts], np.bool_)
        sizes = np.array([len(documents.numbers) for _, documents in parts], np.int64)
        ends = np.cumsum(sizes)
        # Stable: documents with the same tokens keep their order.
        order = np.lexsort((low, high))
        repeats = np.zeros(len(order), bool)
        repeats[1:] = (high[order[1:]] == high[order[:-1]]) & (low[order[1:]] == low[order[:-1]])
        leaders = np.maximum.accumulate(np.where(repeats, 0, np.arange(len(order))))
        again, first = order[repeats], order[leaders[repeats]]
        ascending = np.argsort(again)
        again, first = again[ascending], first[ascending]
        return cls(
            parts=[part for part, _ in parts],
            sizes=sizes,
            numbers=numbers[again],
            places=np.searchsorted(ends, again, "right"),
            first_numbers=numbers[first],
            first_places=np.searchsorted(ends, first, "right"),
            whole=whole[again],
        )

    def problem(self, planned: int) -> Problem:
        """A problem: more duplicates than in the data; the part with the largest share of them is named first."""
        counts = np.bincount(self.places, minlength=len(self.parts))
        order = np.argsort(-(counts / np.maximum(self.sizes, 1)), kind="stable")
        worst = int(order[0])
        shares = [f"{counts[i]:,} of part {self.parts[i]}" for i in order[:SHOWN].tolist() if counts[i]]
        what = (
            f"{self._duplicates()} of an earlier one, {planned:,} in the data: "
            f"{', '.join(shares)}{_and_more(int((counts > 0).sum()))}; in part {self.parts[worst]} {self._first(worst)}"
        )
        return part_problem(self.parts[worst], layout.SEQUENCES, what)

    def note(self, split: SplitPlan) -> Note:
        """A note on duplicates that may be in the data."""
        expected = "number in the data unknown" if split.duplicates is None else f"{split.duplicates:,} in the data"
        what = f"{split.name}: {self._duplicates()} of an earlier one ({expected}): {self._first()}"
        return Note(part=None, file=layout.PARTS, what=what)

    def _duplicates(self) -> str:
        return counted(self.n, "document is a duplicate", "documents are duplicates")

    def _first(self, place: int | None = None) -> str:
        """The first of them, in one part or in all."""
        own = np.arange(self.n) if place is None else np.flatnonzero(self.places == place)
        pairs = [
            f"document {self.numbers[i]:,} is a duplicate of {self.first_numbers[i]:,} in part "
            f"{self.parts[self.first_places[i]]}"
            for i in own[:SHOWN].tolist()
        ]
        return f"{', '.join(pairs)}{_and_more(len(own))}"


def _joined(arrays: Sequence[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *arrays])


def _and_more(n: int) -> str:
    return f" and {n - SHOWN:,} more" if n > SHOWN else ""
