"""Where a model runs: devices that have shown that they work, the number type, and how a large one is spread.

In: `Machine`, and the bytes of the weights. Out: devices, a dtype, a `Placement`, a number of threads.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch

from kdpipe.schemas.choices import DtypeName
from kdpipe.schemas.errors import ConfigError

# Of a device's free memory, what weights may take; the rest is for activations, logits and what the allocator wastes.
SHARE_FOR_WEIGHTS = 0.8
# The last cards that builds for CUDA 12.6 serve; torch 2.15 drops them (ecosystem.md, section 0).
OLD_CARDS = (7, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where the weights lie: on one device, spread over several, or partly in CPU memory.

    `max_memory` is in bytes, by device number or "cpu"; it is empty where one device holds all.
    """

    kind: Literal["one", "spread", "offloaded"]
    max_memory: dict[int | str, int] = field(default_factory=dict)


def choose(devices: str) -> list[torch.device]:
    """Give the devices that `auto`, `cpu`, `all` or `cuda:N` stands for, each after a kernel has run on it."""
    if devices == "cpu":
        return [torch.device("cpu")]
    if not re.fullmatch(r"auto|all|cuda:[0-9]{1,4}", devices):
        raise ConfigError(f"there is no device {devices}", hint="give auto, cpu, or one GPU such as cuda:0")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if devices.startswith("cuda:"):
        number = int(devices.removeprefix("cuda:"))
        if number >= count:
            raise ConfigError(f"there is no device cuda:{number}: torch sees {_gpus(count)}", hint=_why_no_gpu(count))
        return [_believed(number)]
    if devices == "all" and not count:
        raise ConfigError("all GPUs were asked for, and torch sees none", hint=_why_no_gpu(count))
    wanted = range(count) if devices == "all" else range(min(count, 1))
    return [_believed(number) for number in wanted] or [torch.device("cpu")]


def choose_dtype(asked: str, device: torch.device) -> DtypeName:
    """Resolve `auto`: float32 on the CPU, bfloat16 where the GPU computes in it, else float16."""
    names: dict[str, DtypeName] = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}
    if asked in names:
        return names[asked]
    if device.type != "cuda":
        return "float32"
    # Older cards emulate bfloat16, and say that they support it.
    native = torch.cuda.is_bf16_supported() and torch.cuda.get_device_capability(device) >= (8, 0)
    return "bfloat16" if native else "float16"


def place(weight_bytes: int, free_bytes: Sequence[int], cpu_free_bytes: int) -> Placement:
    """Fit the weights into the memory of one device, of all of them, or of them and the CPU."""
    usable = [int(free * SHARE_FOR_WEIGHTS) for free in free_bytes]
    if fits(weight_bytes, free_bytes[0]):
        return Placement(kind="one")
    spread: dict[int | str, int] = dict(enumerate(usable))
    if weight_bytes <= sum(usable):
        return Placement(kind="spread", max_memory=spread)
    usable_on_cpu = int(cpu_free_bytes * SHARE_FOR_WEIGHTS)
    if weight_bytes <= sum(usable) + usable_on_cpu:
        return Placement(kind="offloaded", max_memory=spread | {"cpu": usable_on_cpu})
    raise ConfigError(
        f"the teacher's weights take {_gib(weight_bytes)}, {len(usable)} devices and the CPU have room for "
        f"{_gib(sum(usable) + usable_on_cpu)}",
        hint="quantize it (teacher.quantize int8 or int4), or run it on a larger machine",
    )


def fits(weight_bytes: int, free_bytes: int) -> bool:
    """Whether a device with so much free memory can hold some weights and still compute."""
    return weight_bytes <= int(free_bytes * SHARE_FOR_WEIGHTS)


def free_memory(device: torch.device) -> int:
    """Bytes that a device still has: of a GPU by its driver, of the CPU by the system."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    memory = Path("/proc/meminfo")
    if memory.is_file():
        for line in memory.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    # macOS and Windows do not say; weights are then left to try their luck.
    return 1 << 62


def n_threads(asked: int | None) -> int:
    """Give the threads to compute with: those asked for, or one for each CPU that this process may use."""
    return usable_cpus() if asked is None else asked


def usable_cpus(root: Path = Path("/")) -> int:
    """CPUs that this process really gets: those it may run on, or fewer where its container has a quota of time."""
    affinity = getattr(os, "sched_getaffinity", None)
    n_cpus = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    quotas = [int(quota) for folder in _control_groups(root) for quota in _quotas(folder)]
    return max(1, min([n_cpus, *quotas]))


def _control_groups(root: Path) -> Iterator[Path]:
    """The control groups above this process, of version 2 and of version 1; their tops too, for inside a container
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
    """How many CPUs a control group grants, where it says so."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        with suppress(OSError, ValueError):
            quota, period = " ".join((folder / name).read_text() for name in names).split()
            if quota not in ("max", "-1"):
                yield int(quota) / int(period)


def _believed(number: int) -> torch.device:
    device = torch.device("cuda", number)
    try:
        run_kernel(device)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"cuda:{number} has no memory left: another program uses it", hint="free it, or give another device"
        ) from error
    except RuntimeError as error:
        name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        lines = str(error).splitlines() or ["?"]
        raise unusable(name, capability, torch.cuda.get_arch_list(), lines[0]) from error
    return device


def run_kernel(device: torch.device) -> None:
    """Multiply two small matrices on a device and look at the answer; a card can be seen and yet run nothing."""
    ones = torch.ones(16, 16, device=device)
    if (ones @ ones).sum().item() != 16**3:
        raise RuntimeError("a small product of matrices came out wrong")


def unusable(name: str, capability: tuple[int, int], built_for: Sequence[str], error: str) -> ConfigError:
    """Say why a card cannot be used, and which build of torch would fit it."""
    major, minor = capability
    known = ", ".join(built_for) or "no GPU"
    what = f"{name} (sm_{major}{minor}) runs no kernel of torch {version('torch')}, built for {known}: {error}"
    if f"sm_{major}{minor}" in built_for:
        return ConfigError(what, hint="look at the driver with nvidia-smi, or go on with the device cpu")
    if capability <= OLD_CARDS:
        hint = (
            "pip install 'torch<2.15' --index-url https://download.pytorch.org/whl/cu126, the last for such cards, "
            "or go on with the device cpu"
        )
    else:
        hint = "install the newest torch (pip install -U torch), or go on with the device cpu"
    return ConfigError(what, hint=hint)


def _gpus(count: int) -> str:
    return f"{count} GPUs" if count != 1 else "1 GPU"


def _why_no_gpu(count: int) -> str:
    if count:
        return f"give cuda:0{f' to cuda:{count - 1}' if count > 1 else ''}"
    if torch.version.cuda is None:
        return f"torch {version('torch')} is built without CUDA; install a build with it, or give the device cpu"
    return "does nvidia-smi see the card? or give the device cpu"


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / (1 << 30):.1f} GiB"
