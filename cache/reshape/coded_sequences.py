"""Coded rows, split by document and joined into sequences: numbers are not decoded, so none is rounded.

In: the codes of neighboring documents. Out: those of some of them, in one sequence. Differences of ids and log p
restart at every row, so a row's codes do not depend on its place.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.cache.format.encode import CodedRows
from kdpipe.cache.format.quantizers import Codes
from kdpipe.cache.format.ragged import Longs
from kdpipe.cache.parts.sequences import Places
from kdpipe.schemas.manifest import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceDocuments:
    """The documents of one sequence, or of part of one; `texts`: None where the cache has no text."""

    coded: CodedRows
    places: Places
    texts: list[str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryCounts:
    """How many numbers rows have in each stream."""

    exact: Longs
    draws: Longs
    values: Longs

    @classmethod
    def of(cls, columns: Codes, manifest: Manifest) -> "EntryCounts":
        numbers = {column.name: n for n, column in enumerate(manifest.arrays.row.columns)}
        none = np.zeros(len(columns), np.int64)
        exact, draws = (
            columns[:, numbers[name]].astype(np.int64) if name in numbers else none for name in ("n_exact", "n_draws")
        )
        return cls(exact=exact, draws=draws, values=exact + draws if manifest.targets.draw_values else exact)


def documents_of(stored: SequenceDocuments, manifest: Manifest) -> Iterator[SequenceDocuments]:
    """Split a sequence into its documents."""
    places, coded = stored.places, stored.coded
    counts = EntryCounts.of(coded.columns, manifest)
    ends = [*places.document_starts[1:].tolist(), places.n_rows]
    before = {
        "ids": _before(counts.exact + counts.draws),
        "times": _before(counts.draws) if len(coded.times) else np.zeros(places.n_rows + 1, np.int64),
        "logprobs": _before(counts.values),
    }
    for i, (first, end) in enumerate(zip(places.document_starts.tolist(), ends, strict=True)):
        own = slice(i, i + 1)
        yield SequenceDocuments(
            coded=CodedRows(
                columns=coded.columns[first:end],
                vectors={name: rows[first:end] for name, rows in coded.vectors.items()},
                **{name: getattr(coded, name)[sums[first] : sums[end]] for name, sums in before.items()},
            ),
            places=Places(
                n_rows=end - first,
                document_starts=np.zeros(1, np.int64),
                documents=places.documents[own],
                digests=places.digests[own],
                pooled=places.pooled[own],
                columns={name: values[own] for name, values in places.columns.items()},
            ),
            texts=None if stored.texts is None else stored.texts[own],
        )


def _before(counts: Longs) -> Longs:
    return np.concatenate([[0], np.cumsum(counts)])


def joined(pieces: Sequence[SequenceDocuments]) -> SequenceDocuments:
    """Join documents into one sequence."""
    if len(pieces) == 1:
        return pieces[0]
    places, coded = [piece.places for piece in pieces], [piece.coded for piece in pieces]
    starts = _before(np.array([place.n_rows for place in places], np.int64))
    texts = [text for piece in pieces for text in piece.texts or ()]
    return SequenceDocuments(
        coded=CodedRows(
            columns=_concatenated(coded, lambda rows: rows.columns),
            ids=_concatenated(coded, lambda rows: rows.ids),
            times=_concatenated(coded, lambda rows: rows.times),
            logprobs=_concatenated(coded, lambda rows: rows.logprobs),
            vectors={name: np.concatenate([rows.vectors[name] for rows in coded]) for name in coded[0].vectors},
        ),
        places=Places(
            n_rows=int(starts[-1]),
            document_starts=np.concatenate([p.document_starts + s for p, s in zip(places, starts[:-1], strict=True)]),
            documents=np.concatenate([place.documents for place in places]),
            digests=np.concatenate([place.digests for place in places]),
            pooled=np.concatenate([place.pooled for place in places]),
            columns={name: [v for place in places for v in place.columns[name]] for name in places[0].columns},
        ),
        texts=None if pieces[0].texts is None else texts,
    )


def _concatenated(coded: Sequence[CodedRows], which: Callable[[CodedRows], npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return np.concatenate([which(rows) for rows in coded])
