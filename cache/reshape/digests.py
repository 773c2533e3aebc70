"""Documents shared by caches, found by the digests of their tokens; uses 16 bytes of memory per document.

In: the digests of documents. Out: which of some others are among them.
"""

from collections.abc import Iterable
from typing import Any, final

import numpy as np
import numpy.typing as npt

from kdpipe.cache.format.ragged import Bools
from kdpipe.cache.reshape.sources import SourceCache

Digests = npt.NDArray[Any]


@final
class KnownDocuments:
    """A set of digests, each 16 bytes (numpy's S16: equal as numbers of one width, trailing zeros included)."""

    def __init__(self, digests: Iterable[Digests] = ()) -> None:
        self._sorted = np.unique(np.concatenate([np.zeros(0, "S16"), *digests]))

    def __len__(self) -> int:
        return len(self._sorted)

    def have(self, digests: Digests) -> Bools:
        """A mask of the known digests."""
        if not len(self._sorted):
            return np.zeros(len(digests), bool)
        places = np.minimum(np.searchsorted(self._sorted, digests), len(self._sorted) - 1)
        return np.asarray(self._sorted[places] == digests)

    def has(self, digest: bytes) -> bool:
        """Whether one digest is known."""
        return bool(self.have(np.frombuffer(digest, "S16"))[0])

    def with_more(self, digests: Iterable[Digests]) -> "KnownDocuments":
        return KnownDocuments([self._sorted, *digests])


def digests_of(source: SourceCache) -> Iterable[Digests]:
    """The digests of a cache, part by part."""
    return (source.documents(row.part).digests for row in source.cache.parts)
