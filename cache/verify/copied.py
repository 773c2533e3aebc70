"""Documents with identical draws: a part that was copied over another one.

In: the rows of each part, part after part. Out: copied documents. The generator of draws is keyed by the document's
number, so duplicates in the data have different draws; equal draws mean copied bytes. Targets without draws are not
checked here.
"""

import hashlib
from collections.abc import Iterator
from typing import Final, final

import numpy as np

from kdpipe.cache.format.rows import Rows
from kdpipe.schemas.counts import counted

# Draws of a document that cannot agree by chance; shorter documents are not compared.
LEAST_DRAWS: Final = 256
# About half a gigabyte; in larger caches, later documents are compared with the first ones only.
MOST_KNOWN: Final = 4_000_000
Copied = tuple[int, int, int]


def in_words(copied: list[Copied]) -> Iterator[str]:
    """One problem for all the copied documents of a part."""
    if copied:
        document, number, part = copied[0]
        copies = counted(len(copied), "document is a copy of another", "documents are copies of others")
        yield (
            f"{copies}, draws included; the first is document {document:,}, a copy of {number:,} in part {part} "
            "(duplicates in the data have different draws)"
        )


@final
class CopiedDocuments:
    """The documents seen so far in each split, by their draws."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[int, int]] = {}

    def found(self, part: int, split: str, rows: Rows) -> Iterator[Copied]:
        """Documents among some rows with the draws of another document of the split, which follows with its part."""
        n_draws = (rows.count - rows.n_exact).astype(np.int64)
        entries = np.concatenate([[0], np.cumsum(rows.count, dtype=np.int64)])
        is_draw = np.arange(entries[-1]) - np.repeat(entries[:-1], rows.count) >= np.repeat(rows.n_exact, rows.count)
        ends = np.append(rows.document_starts[1:], len(rows))
        for document, first, end in zip(rows.documents.tolist(), rows.document_starts.tolist(), ends, strict=True):
            if n_draws[first:end].sum() < LEAST_DRAWS:
                continue
            own = slice(entries[first], entries[end])
            digest = hashlib.blake2b(split.encode(), digest_size=16)
            for array in (rows.tokens[first:end], n_draws[first:end], rows.ids[own][is_draw[own]]):
                digest.update(array.tobytes())
            known_part, number = self._known.get(digest.digest(), (part, document))
            if number != document:
                yield document, number, known_part
            elif len(self._known) < MOST_KNOWN:
                self._known[digest.digest()] = (part, document)
