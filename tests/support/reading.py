"""Reading seen from outside: rows compared, work for child processes, what a process holds of a cache.

In: caches and rows. Out: failed assertions, digests, counts. Child processes import this module by name.
"""

import hashlib
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from kdpipe.cache.format.rows import Rows
from kdpipe.cache.reader import Cache


def arrays_of(rows: Rows) -> dict[str, Any]:
    """Every array that rows have, by name."""
    found: dict[str, Any] = {}
    for name in {*Rows.__slots__} - {"decode"}:
        value = getattr(rows, name)
        if name in ("log_z", "hidden"):
            found.update({f"{name}@{key}": array for key, array in value.items()})
        elif value is not None:
            found[name] = value
    return found


def assert_same_rows(one: Rows, other: Rows) -> None:
    """Equal to the bit."""
    first, second = arrays_of(one), arrays_of(other)
    assert first.keys() == second.keys()
    for name, array in first.items():
        assert array.dtype == second[name].dtype, name
        np.testing.assert_array_equal(array, second[name], err_msg=name)


def joined(pieces: Iterable[Rows]) -> dict[str, Any]:
    """Rows one behind the other, with document starts counted through."""
    found: dict[str, list[Any]] = {}
    n_rows = 0
    for rows in pieces:
        for name, array in arrays_of(rows).items():
            found.setdefault(name, []).append(array + n_rows if name == "document_starts" else array)
        n_rows += len(rows)
    return {name: np.concatenate(arrays) for name, arrays in found.items()}


def digest_of(cache: Cache, i: int) -> str:
    """One digest of everything that a cache stores of a sequence."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays_of(cache[i]).items()):
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    digest.update(repr((cache.columns(i), cache.digests(i), cache.token_bytes(i).tolist())).encode())
    return digest.hexdigest()


def digests_of_all(cache: Cache) -> list[str]:
    """The digests of all sequences; a whole worker process's work."""
    return [digest_of(cache, i) for i in range(len(cache))]


def read_in_threads(cache: Cache, n_threads: int, n_reads: int) -> tuple[dict[int, set[str]], list[BaseException]]:
    """Many threads reading sequences in an order of their own: the digests seen of each, and what went wrong."""
    seen: dict[int, set[str]] = {}
    errors: list[BaseException] = []
    begin = threading.Barrier(n_threads)

    def work(seed: int) -> None:
        begin.wait(timeout=900)
        try:
            for i in np.random.default_rng(seed).integers(0, len(cache), n_reads).tolist():
                seen.setdefault(i, set()).add(digest_of(cache, i))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=900)
    return seen, errors


def open_files() -> int:
    """How many file descriptors this process has (Linux)."""
    return len(list(Path("/proc/self/fd").iterdir()))


def mapped_files(folder: Path) -> list[str]:
    """The files below a folder that this process has mapped, one for each mapping (Linux)."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line.split(maxsplit=5)[5] for line in lines if f"{folder}/" in line]
