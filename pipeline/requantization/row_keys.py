"""Random keys for what is drawn again: they follow from the source, the document's tokens and the position.

In: the cache_id of the source, a seed, digests of documents. Out: a key a row. The cache_id keeps what is drawn now
apart from what was drawn before: had both the same numbers, an id that was drawn once would be drawn again too often.
"""

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.pipeline.targets.draws import GOLDEN, key_of, mixed

Longs = npt.NDArray[np.int64]


def row_keys(cache_id: str, seed: int, digests: npt.NDArray[np.uint8], lengths: Longs) -> Longs:
    """The keys of the rows of some documents behind each other."""
    words = [int(cache_id[i : i + 15], 16) for i in range(0, 60, 15)]
    halves = torch.from_numpy(np.ascontiguousarray(digests).view("<i8").astype(np.int64).reshape(-1, 2))
    keys = mixed(mixed(key_of(seed, *words) + GOLDEN + halves[:, 0]) + GOLDEN + halves[:, 1])
    starts = np.cumsum(lengths) - lengths
    positions = torch.from_numpy(np.arange(int(lengths.sum())) - np.repeat(starts, lengths))
    found: Longs = mixed(keys.repeat_interleave(torch.from_numpy(lengths)) + GOLDEN + positions).numpy()
    return found
