"""zarr-python as a second reader: a part's arrays must have the same numbers in both readers.

In: the local folder of a cache and one of its parts. Out: messages about arrays on which the two readers differ. The
only module that imports zarr.
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

# zarr takes milliseconds per call: only samples of each array are compared here, whole caches in the tests.
STRETCH = 4096


def open_arrays(cache: str, number: int, names: tuple[str, ...]) -> dict[str, Any]:
    """A part's arrays, opened by zarr."""
    import zarr

    folder = os.path.join(cache, LocalStore(Path(cache)).part_prefix(number), layout.TARGETS)
    with warnings.catch_warnings():
        # pcodec is registered by numcodecs and not in the zarr specification: zarr warns each time.
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
                yield f"{name}: zarr-python reads other numbers at {start}:{stop}"
                break
