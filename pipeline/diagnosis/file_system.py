"""Checks of the file system of an output directory: the operations that caches and runs need, speed and space.

In: a directory, existing or not. Out: checks; a temporary folder is created and removed.
"""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import final

from kdpipe.cache.durable.files import link_file
from kdpipe.cache.durable.lock import locked
from kdpipe.cache.stores.addresses import check_address, is_url
from kdpipe.schemas.counts import size
from kdpipe.schemas.doctor_report import Check, passed, problem, warning
from kdpipe.schemas.errors import KdpipeError

PROBE_BYTES, N_PROBES = 4 << 20, 3
# A teacher that predicts 20,000 tokens per second at 30 to 100 bytes per position writes at most 2 MB/s.
SLOW_BYTES_PER_SECOND = 2e6
LITTLE_SPACE_BYTES = 5e9
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def output_directory(out: str) -> list[Check]:
    if is_url(out):
        check_address(out)
        do = "give a local directory as --out; cache-teacher checks a remote one before it reads the data"
        return [warning("file system", f"{out} is remote and was not checked", do)]
    folder = Path(out).expanduser().absolute()
    nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not nearest.is_dir():
        return [problem("file system", f"{nearest} is not a directory", "choose another --out, or move that file")]
    return [*_operations(nearest), _space(nearest)]


def _operations(folder: Path) -> Iterator[Check]:
    """Try each operation in a temporary folder; the first one that fails ends the checks."""
    probe = _Probe(folder)
    with contextlib.closing(probe):
        for operation in (probe.write, probe.fsync, probe.rename, probe.link, probe.lock):
            try:
                operation()
            except (OSError, KdpipeError) as error:
                name = operation.__name__
                yield problem("file system", f"{name} fails in {folder}: {error}", _remedy(name, error))
                return
    if probe.missing:
        do = "do not start two commands with the same --out at the same time, or choose a local disk"
        yield warning("file system", f"{folder} has no {' and no '.join(probe.missing)}", do)
    else:
        yield passed("file system", f"write, fsync, rename, link and lock work in {folder}")
    what = f"writes {size(probe.bytes_per_second)} per second (best of {N_PROBES})"
    if probe.bytes_per_second < SLOW_BYTES_PER_SECOND:
        yield warning("disk speed", what, "write to a local disk, then copy with kdpipe cache copy")
    else:
        yield passed("disk speed", what)


@final
class _Probe:
    """The operations that caches and runs need, in a temporary folder; `missing`: those that kdpipe can do without."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._temporary: Path | None = None
        self.missing: list[str] = []
        self.bytes_per_second = 0.0

    def _path(self, name: str) -> Path:
        assert self._temporary is not None
        return self._temporary / name

    def write(self) -> None:
        self._temporary = Path(tempfile.mkdtemp(prefix=".kdpipe-doctor-", dir=self._folder))
        self._path("probe").write_bytes(bytes(1))

    def fsync(self) -> None:
        """Write and flush several times: the best time is the least affected by other programs."""
        data = os.urandom(PROBE_BYTES)
        for _ in range(N_PROBES):
            started = perf_counter()
            with self._path("probe").open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            seconds = max(perf_counter() - started, 1e-6)
            self.bytes_per_second = max(self.bytes_per_second, PROBE_BYTES / seconds)

    def rename(self) -> None:
        self._path("probe").replace(self._path("renamed"))

    def link(self) -> None:
        if not link_file(self._path("renamed"), self._path("linked")):
            self.missing.append("hard links")

    def lock(self) -> None:
        notes: list[str] = []
        with locked(self._path("run"), notes.append):
            if notes:
                self.missing.append("locks")

    def close(self) -> None:
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)


def _remedy(operation: str, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in FULL:
        return "free some space or raise the quota, or choose another --out"
    if operation == "write":
        return "fix its permissions, or choose another --out"
    return "choose an --out on a local disk; runs and caches need this operation"


def _space(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    what = f"{size(free)} free"
    if free < LITTLE_SPACE_BYTES:
        do = "free some space, or choose another --out; kdpipe plan estimates the size of a cache"
        return warning("disk space", what, do)
    return passed("disk space", what)
