"""The CPUs that this process may use: its affinity and the quota of its container. Imports no torch."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def usable_cpus(root: Path = Path("/")) -> int:
    """CPUs available to this process: its affinity, or fewer under a container's CPU quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    n_cpus = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    quotas = [int(quota) for folder in _control_groups(root) for quota in _quotas(folder)]
    return max(1, min([n_cpus, *quotas]))


def _control_groups(root: Path) -> Iterator[Path]:
    """The control groups of this process (versions 1 and 2) and their parents up to the root, since inside a container
    the path of its own group may not be mounted."""
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            for mount in ("cpu", "cpu,cpuacct") if controllers else ("",):
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
