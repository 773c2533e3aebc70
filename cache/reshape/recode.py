"""The coded rows of a committed part, optionally with ids in the ranks of another table.

In: a `PartReader`, and the new rank of every old one. Out: `SequenceDocuments`, one sequence at a time. Only ranks
change: exact ids keep their order, draws and their values are sorted by the new ranks.
"""

from dataclasses import replace
from typing import Any, final

import numpy as np
import numpy.typing as npt

from kdpipe.cache import layout
from kdpipe.cache.format.encode import CodedRows
from kdpipe.cache.format.quantizers import Codes
from kdpipe.cache.format.ragged import differences, draw_mask, undo_differences_of_draws
from kdpipe.cache.parts.part_reader import PartReader
from kdpipe.cache.parts.sequences import Places
from kdpipe.cache.reshape.coded_sequences import EntryCounts, SequenceDocuments
from kdpipe.schemas.errors import CacheDamaged
from kdpipe.schemas.manifest import Manifest


def rank_changes(old: npt.NDArray[Any], new: npt.NDArray[Any]) -> Codes | None:
    """The new rank of every old one, given both tables of ids by rank; None where they are equal."""
    if np.array_equal(old, new):
        return None
    rank_of_id = np.empty(len(new), np.uint32)
    rank_of_id[new] = np.arange(len(new), dtype=np.uint32)
    changes: Codes = rank_of_id[old]
    return changes


@final
class CodedPart:
    """A part, sequence by sequence."""

    def __init__(self, part: PartReader, manifest: Manifest, changes: Codes | None) -> None:
        self._part, self._manifest, self._changes = part, manifest, changes
        self._token = [column.name for column in manifest.arrays.row.columns].index("token")

    def __len__(self) -> int:
        return len(self._part.sequences)

    def sequence(self, number: int) -> SequenceDocuments:
        """A sequence with all its stored data."""
        part, manifest = self._part, self._manifest
        places = self._places(number)
        start, stop = part.sequences.row_starts[[number, number + 1]].tolist()
        columns = part.numbers("row", start, stop)
        counts = EntryCounts.of(columns, manifest)
        coded = self._entries(number, columns, counts)
        kept = set(part.array_names) & {"hidden", "state"}
        vectors = {name: part.numbers(name, start, stop) for name in sorted(kept)}
        return SequenceDocuments(
            coded=self._in_new_ranks(replace(coded, vectors=vectors), counts),
            places=places,
            texts=part.texts(number) if manifest.data.text else None,
        )

    def _places(self, number: int) -> Places:
        sequences = self._part.sequences
        first, end = self._part.documents(number)
        start, stop = sequences.row_starts[[number, number + 1]].tolist()
        return Places(
            n_rows=stop - start,
            document_starts=sequences.document_starts[first:end],
            documents=sequences.documents[first:end],
            digests=sequences.digests()[first:end],
            pooled=sequences.coded_pooled(first, end),
            columns={c.name: sequences.column(c.name, first, end) for c in self._manifest.data.columns},
        )

    def _entries(self, number: int, columns: Codes, counts: EntryCounts) -> CodedRows:
        part, places = self._part, self._part.sequences
        exact, exact_end = places.exact_starts[[number, number + 1]].tolist()
        draws, draws_end = places.draw_starts[[number, number + 1]].tolist()
        if int(counts.exact.sum()) != exact_end - exact or int(counts.draws.sum()) != draws_end - draws:
            raise CacheDamaged(
                f"{layout.part_dir(part.number)}: entry counts do not match {layout.SEQUENCES}",
                hint="check the source cache with `kdpipe cache verify --level deep`",
            )
        also = int(self._manifest.targets.draw_values)

        def stream(name: str, start: int, stop: int) -> Codes:
            return part.numbers(name, start, stop) if name in part.array_names else np.zeros(0, np.uint32)

        return CodedRows(
            columns=columns,
            ids=stream("id", exact + draws, exact_end + draws_end),
            times=stream("times", draws, draws_end),
            logprobs=stream("logprob", exact + draws * also, exact_end + draws_end * also),
            vectors={},
        )

    def _in_new_ranks(self, coded: CodedRows, counts: EntryCounts) -> CodedRows:
        if self._changes is None:
            return coded
        try:
            columns = coded.columns.copy()
            columns[:, self._token] = self._changes.take(columns[:, self._token])
            if not len(coded.ids):
                return replace(coded, columns=columns)
            return _moved(replace(coded, columns=columns), counts, self._changes)
        except IndexError:
            raise CacheDamaged(f"{layout.part_dir(self._part.number)}: the rank of an id is out of range") from None


def _moved(coded: CodedRows, counts: EntryCounts, changes: Codes) -> CodedRows:
    """Ids in their new ranks, draws sorted by them; raises IndexError for a rank that is out of range."""
    is_draw = draw_mask(counts.exact, counts.draws)
    ranks = changes.take(open_ranks(coded.ids, counts))
    row_of = np.repeat(np.arange(len(counts.draws)), counts.draws)
    order = np.lexsort((ranks[is_draw], row_of))
    ranks[is_draw] = differences(ranks[is_draw][order], counts.draws)
    logprobs = coded.logprobs
    if len(logprobs) == len(ranks):
        logprobs = logprobs.copy()
        logprobs[is_draw] = logprobs[is_draw][order]
    times = coded.times[order] if len(coded.times) else coded.times
    return replace(coded, ids=ranks, logprobs=logprobs, times=times)


def open_ranks(ids: Codes, counts: EntryCounts) -> Codes:
    """The rank of every entry, with the differences of draws undone."""
    is_draw = draw_mask(counts.exact, counts.draws)
    return np.where(is_draw, undo_differences_of_draws(ids, counts.exact, counts.draws), ids)
