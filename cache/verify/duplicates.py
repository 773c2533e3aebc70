"""The deep level, across parts: documents that are in a split more than once, held against the manifest's plan.

In: a store, and the parts whose rows are good. Out: a problem for each split with more duplicates than planned, a note
for each with some. A part that was copied in the place of another is found here whatever its kind of targets is, as
long as the plan says how many documents the data have more than once. sequences.arrow is read here once more: a process
that decodes rows may die in the middle. Some 60 bytes a document are held.
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
    """A value for each document, ascending by number: `high` and `low` add up the digests of its pieces.

    `whole` is false where every piece fills its sequence: such a document may have been longer, and may differ from an
    equal one in what was cut off.
    """

    numbers: Longs
    high: npt.NDArray[np.uint64]
    low: npt.NDArray[np.uint64]
    whole: npt.NDArray[np.bool_]


@final
class Duplicates:
    """The documents of the parts that were added, held against the plan."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._problems: list[Problem] = []
        self._by_split: dict[str, list[tuple[int, _Documents]]] = {split.name: [] for split in manifest.plan.splits}

    def add(self, store: Store, record: PartRecord) -> None:
        """Look at the documents of a part."""
        try:
            self._by_split[record.split].append((record.part, _documents(store, self._manifest, record)))
        except CacheDamaged as error:
            self._problems.append(part_problem(record.part, layout.SEQUENCES, error.message))

    def findings(self) -> tuple[list[Problem], list[Note]]:
        """What the documents of all these parts say about each split."""
        problems, notes = list(self._problems), list[Note]()
        for split in self._manifest.plan.splits:
            found = _Repeated.of(self._by_split[split.name])
            if split.duplicates is not None and (sure := found.whole_ones()).n > split.duplicates:
                problems.append(sure.problem(split.duplicates))
            elif found.n:
                notes.append(found.note(split))
        return problems, notes


def _documents(store: Store, manifest: Manifest, record: PartRecord) -> _Documents:
    """The documents of a part, the pieces of each together."""
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
class _Repeated:
    """Documents that have the tokens of an earlier one, ascending: their `numbers`, the `places` of their parts among
    `parts`, and the first document of the same tokens with its part."""

    parts: Sequence[int]
    sizes: Longs
    numbers: Longs
    places: Longs
    first_numbers: Longs
    first_places: Longs
    whole: npt.NDArray[np.bool_]

    @property
    def n(self) -> int:
        """How many there are."""
        return len(self.numbers)

    def whole_ones(self) -> "_Repeated":
        """Those that were surely not cut."""
        found = {name: getattr(self, name)[self.whole] for name in LISTED}
        return replace(self, **found)

    @classmethod
    def of(cls, found: Sequence[tuple[int, _Documents]]) -> "_Repeated":
        """Those among the documents of some parts of a split."""
        numbers = _joined([each.numbers for _, each in found], np.int64)
        high = _joined([each.high for _, each in found], np.uint64)
        low = _joined([each.low for _, each in found], np.uint64)
        whole = _joined([each.whole for _, each in found], np.bool_)
        sizes = np.array([len(each.numbers) for _, each in found], np.int64)
        ends = np.cumsum(sizes)
        # Stable: documents of the same tokens stay in their order, the first one leads.
        order = np.lexsort((low, high))
        repeats = np.zeros(len(order), bool)
        repeats[1:] = (high[order[1:]] == high[order[:-1]]) & (low[order[1:]] == low[order[:-1]])
        leaders = np.maximum.accumulate(np.where(repeats, 0, np.arange(len(order))))
        again, first = order[repeats], order[leaders[repeats]]
        ascending = np.argsort(again)
        again, first = again[ascending], first[ascending]
        return cls(
            parts=[part for part, _ in found],
            sizes=sizes,
            numbers=numbers[again],
            places=np.searchsorted(ends, again, "right"),
            first_numbers=numbers[first],
            first_places=np.searchsorted(ends, first, "right"),
            whole=whole[again],
        )

    def problem(self, planned: int) -> Problem:
        """More duplicates than the data have: of all parts the one with the largest share of them is named first."""
        counts = np.bincount(self.places, minlength=len(self.parts))
        order = np.argsort(-(counts / np.maximum(self.sizes, 1)), kind="stable")
        worst = int(order[0])
        shares = [f"{counts[i]:,} of part {self.parts[i]}" for i in order[:SHOWN].tolist() if counts[i]]
        what = (
            f"{self._duplicates()} of an earlier one, {planned:,} in the data: "
            f"{', '.join(shares)}{_more(int((counts > 0).sum()))}; in part {self.parts[worst]} {self._first(worst)}"
        )
        return part_problem(self.parts[worst], layout.SEQUENCES, what)

    def note(self, split: SplitPlan) -> Note:
        """Duplicates that the data may well have."""
        due = "how many the data have is unknown" if split.duplicates is None else f"{split.duplicates:,} in the data"
        what = f"{split.name}: {self._duplicates()} of an earlier one ({due}): {self._first()}"
        return Note(part=None, file=layout.PARTS, what=what)

    def _duplicates(self) -> str:
        return counted(self.n, "document is a duplicate", "documents are duplicates")

    def _first(self, place: int | None = None) -> str:
        """The first of them, in a part or in all."""
        mine = np.arange(self.n) if place is None else np.flatnonzero(self.places == place)
        pairs = [
            f"document {self.numbers[i]:,} is a duplicate of {self.first_numbers[i]:,} in part "
            f"{self.parts[self.first_places[i]]}"
            for i in mine[:SHOWN].tolist()
        ]
        return f"{', '.join(pairs)}{_more(len(mine))}"


def _joined(arrays: Sequence[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *arrays])


def _more(n: int) -> str:
    return f" and {n - SHOWN:,} more" if n > SHOWN else ""
