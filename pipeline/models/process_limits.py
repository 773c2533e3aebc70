"""CPUs and memory that this process may use, under the limits of its container; imports no torch."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

ROOT = Path("/")
# Control groups without a limit have max, in version 1 a number near 2^63.
UNLIMITED_BYTES = 1 << 60


def usable_cpus(root: Path = ROOT) -> int:
    """CPUs available to this process: its affinity, or fewer under a container's CPU quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    n_cpus = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    quotas = [int(quota) for folder in _control_groups(root, "cpu", "cpu,cpuacct") for quota in _quotas(folder)]
    return max(1, min([n_cpus, *quotas]))


def usable_memory(root: Path = ROOT) -> int | None:
    """Free bytes of the system, or fewer under a container's limit; None if unknown, as on macOS and Windows."""
    free = [*_system_memory(root), *container_memory(root)]
    return min(free, default=None)


def container_memory(root: Path = ROOT) -> list[int]:
    """Free bytes under each memory limit of the control groups of this process."""
    return [n_bytes for folder in _control_groups(root, "memory") for n_bytes in _free_memory(folder)]


def _control_groups(root: Path, controller: str, *other_mounts: str) -> Iterator[Path]:
    """The control groups of this process (versions 1 and 2) and their parents up to the root, since inside a container
    the path of its own group may not be mounted."""
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            for mount in (controller, *other_mounts) if controllers else ("",):
                top = root / "sys/fs/cgroup" / mount
                group = top / path.lstrip("/")
                yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(top))


def _quotas(folder: Path) -> Iterator[float]:
    """CPU quotas of a control group, if set."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        with suppress(OSError, ValueError):
            quota, period = " ".join((folder / name).read_text() for name in names).split()
            if quota not in ("max", "-1"):
                yield int(quota) / int(period)


def _free_memory(folder: Path) -> Iterator[int]:
    """Free bytes under the limit of a control group, if set; cached files count as free, since they are dropped."""
    for limit, usage, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with suppress(OSError, ValueError):
            n_bytes = int((folder / limit).read_text())
            if n_bytes < UNLIMITED_BYTES:
                used = int((folder / usage).read_text())
                yield max(0, n_bytes - used + _named_number(folder / "memory.stat", cached))


def _system_memory(root: Path) -> Iterator[int]:
    if n_bytes := _named_number(root / "proc/meminfo", "MemAvailable:") * 1024:
        yield n_bytes


def _named_number(path: Path, name: str) -> int:
    """The number after a name in a file of such lines; 0 without it."""
    with suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            words = line.split()
            if words and words[0] == name:
                return int(words[1])
    return 0
