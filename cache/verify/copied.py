"""Documents that are in a cache twice with the same draws: a part that was copied in the place of another.

In: the rows of each part, one part after the other. Out: what is wrong with them. Draws come from a generator that is
keyed by the number of a document, so that a document which the data had twice has draws of its own each time; equal
draws mean copied bytes. Kinds without draws say nothing here.
"""

import hashlib
from collections.abc import Iterator
from typing import Final, final

import numpy as np

from kdpipe.cache.format.rows import Rows
from kdpipe.schemas.counts import counted

# Of one document: so many do not agree by chance. Shorter documents are not compared.
LEAST_DRAWS: Final = 256
# About half a gigabyte; later documents of larger caches are compared with the first ones only.
MOST_KNOWN: Final = 4_000_000
Copied = tuple[int, int, int]


def in_words(copied: list[Copied]) -> Iterator[str]:
    """One problem for all the copied documents of a part."""
    if copied:
        document, number, there = copied[0]
        are = counted(len(copied), "document is a copy of another", "documents are copies of others")
        yield (
            f"{are}, draws included; the first is document {document:,}, a copy of document {number:,} in part {there} "
            "(a document that the data have twice has its own draws)"
        )


@final
class CopiedDocuments:
    """What was seen of each split so far: the part and the document of every set of draws."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[int, int]] = {}

    def found(self, part: int, split: str, rows: Rows) -> Iterator[Copied]:
        """Documents among some rows whose draws are those of another document of the split, with that and its part."""
        n_draws = (rows.count - rows.n_exact).astype(np.int64)
        entries = np.concatenate([[0], np.cumsum(rows.count, dtype=np.int64)])
        is_draw = np.arange(entries[-1]) - np.repeat(entries[:-1], rows.count) >= np.repeat(rows.n_exact, rows.count)
        ends = np.append(rows.document_starts[1:], len(rows))
        for document, first, end in zip(rows.documents.tolist(), rows.document_starts.tolist(), ends, strict=True):
            if n_draws[first:end].sum() < LEAST_DRAWS:
                continue
            mine = slice(entries[first], entries[end])
            digest = hashlib.blake2b(split.encode(), digest_size=16)
            for array in (rows.tokens[first:end], n_draws[first:end], rows.ids[mine][is_draw[mine]]):
                digest.update(array.tobytes())
            there, number = self._known.get(digest.digest(), (part, document))
            if number != document:
                yield document, number, there
            elif len(self._known) < MOST_KNOWN:
                self._known[digest.digest()] = (part, document)
