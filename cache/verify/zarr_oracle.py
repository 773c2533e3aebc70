"""zarr-python as a second reader: it must see in a part's arrays what our own reader sees. The only module that
imports zarr.

In: the local folder of a cache and one of its parts. Out: sentences about arrays on which the two readers differ.
"""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kdpipe.cache import layout
from kdpipe.cache.parts.part_reader import PartReader
from kdpipe.cache.stores.local_store import LocalStore

# zarr costs milliseconds a call: a few stretches of each array are compared here, whole caches in the tests.
STRETCH = 4096


def open_arrays(cache: str, number: int, names: tuple[str, ...]) -> dict[str, Any]:
    """A part's arrays as zarr opens them."""
    import zarr

    folder = os.path.join(cache, LocalStore(Path(cache)).part_prefix(number), layout.TARGETS)
    with warnings.catch_warnings():
        # pcodec is registered by numcodecs and not in the zarr specification, which zarr says at every opening.
        warnings.simplefilter("ignore")
        group = zarr.open_group(folder, mode="r", zarr_format=3)
        return {name: group[name] for name in names}


def disagreements(cache: str, part: PartReader) -> Iterator[str]:
    """Compare the beginning, the middle and the end of every array; only local folders can be opened twice."""
    if not os.path.isdir(cache):
        return
    for name, array in open_arrays(cache, part.number, part.array_names).items():
        length = array.shape[0]
        for start in sorted({0, max(0, length // 2 - STRETCH // 2), max(0, length - STRETCH)}):
            stop = min(length, start + STRETCH)
            if stop > start and not np.array_equal(np.asarray(array[start:stop]), part.numbers(name, start, stop)):
                yield f"{name}: zarr-python reads other numbers from {start} to {stop}"
                break
