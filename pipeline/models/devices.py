"""Devices that pass a small computation, the data type, the placement of large models, and CPU threads.

In: settings of the machine and the size of the weights. Out: devices, a dtype, a `Placement`, a number of threads.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Literal

import torch

from kdpipe.pipeline.models.process_limits import usable_cpus as usable_cpus
from kdpipe.pipeline.models.process_limits import usable_memory
from kdpipe.schemas.choices import DtypeName
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.model import check_devices

# The share of free memory for weights; the rest is for activations, logits and fragmentation.
SHARE_FOR_WEIGHTS = 0.8
CPU = torch.device("cpu")
# Free memory where it is unknown, on macOS and Windows: no limit.
UNKNOWN_FREE = 1 << 62
# The newest GPUs that need builds for CUDA 12.6, which torch 2.15 drops.
OLD_CARDS = (7, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Placement of the weights: on one device, spread over several, or partly offloaded to CPU memory.

    `max_memory` is in bytes, by device number or "cpu"; empty for one device.
    """

    kind: Literal["one", "spread", "offloaded"]
    max_memory: dict[int | str, int] = field(default_factory=dict)


def choose(devices: str) -> list[torch.device]:
    """The devices for a value of --devices, each tested with a small kernel; `auto` is the first GPU or the CPU."""
    try:
        check_devices(devices)
    except ValueError as error:
        raise ConfigError(f"--devices {devices}: {error}") from None
    if devices == "cpu":
        return [torch.device("cpu")]
    if devices == "mps":
        return [_apple_gpu()]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if devices.startswith("cuda:"):
        numbers = [int(name.removeprefix("cuda:")) for name in devices.split(",")]
        for number in numbers:
            if number >= count:
                raise ConfigError(f"cuda:{number} does not exist: torch sees {_gpus(count)}", hint=_why_no_gpu(count))
        return [_working_gpu(number) for number in numbers]
    if devices in ("all", "cuda") and not count:
        raise ConfigError(f"--devices {devices} needs a GPU, and torch sees none", hint=_why_no_gpu(count))
    chosen = range(count) if devices == "all" else range(min(count, 1))
    return [_working_gpu(number) for number in chosen] or [torch.device("cpu")]


def choose_one(devices: str) -> torch.device:
    """The device for a command that uses only one."""
    chosen = choose(devices)
    if len(chosen) > 1:
        names = ", ".join(map(str, chosen))
        raise ConfigError(f"a student uses one device; --devices {devices} selects {names}", hint="use --devices cuda")
    return chosen[0]


def _apple_gpu() -> torch.device:
    """The GPU of Apple silicon, tested with a small kernel; never chosen by `auto`."""
    if not torch.backends.mps.is_available():
        raise ConfigError("mps: this torch sees no Apple GPU", hint="use --devices cpu")
    device = torch.device("mps")
    run_kernel(device)
    return device


def choose_dtype(name: str, device: torch.device) -> DtypeName:
    """Resolve `auto`: float32 on the CPU, bfloat16 where the GPU computes in it, else float16."""
    names: dict[str, DtypeName] = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}
    if name in names:
        return names[name]
    if device.type != "cuda":
        return "float32"
    # Older GPUs report bfloat16 as supported but emulate it.
    native = torch.cuda.is_bf16_supported() and torch.cuda.get_device_capability(device) >= (8, 0)
    return "bfloat16" if native else "float16"


def place(weight_bytes: int, free_bytes: Sequence[int], cpu_free_bytes: int) -> Placement:
    """Fit the weights into one device, all devices, or devices and CPU memory."""
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
        f"the teacher's weights need {_gib(weight_bytes)}; {len(usable)} devices and the CPU have "
        f"{_gib(sum(usable) + usable_on_cpu)} available",
        hint="quantize it (--set teacher.quantize=int8 or int4), or use a larger machine",
    )


def fits(weight_bytes: int, free_bytes: int) -> bool:
    """Whether weights fit into free memory, with room for computation."""
    return weight_bytes <= int(free_bytes * SHARE_FOR_WEIGHTS)


def free_memory(device: torch.device) -> int:
    """Free bytes of a device: of a GPU from its driver, of the CPU from the system and the limits of its container."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = usable_memory()
    return UNKNOWN_FREE if free is None else free


def n_threads(setting: int | None) -> int:
    """The threads to compute with; default: one per usable CPU."""
    return usable_cpus() if setting is None else setting


def _working_gpu(number: int) -> torch.device:
    device = torch.device("cuda", number)
    try:
        run_kernel(device)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"cuda:{number} has no free memory: another program uses it", hint="free it, or use another device"
        ) from error
    except RuntimeError as error:
        name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        lines = str(error).splitlines() or ["?"]
        raise unusable(name, capability, torch.cuda.get_arch_list(), lines[0]) from error
    return device


def run_kernel(device: torch.device) -> None:
    """Multiply two small matrices and check the result; a GPU can be visible and still run no kernel."""
    ones = torch.ones(16, 16, device=device)
    if (ones @ ones).sum().item() != 16**3:
        raise RuntimeError("a small matrix product is wrong")


def unusable(name: str, capability: tuple[int, int], built_for: Sequence[str], error: str) -> ConfigError:
    """Why a GPU cannot be used, and which build of torch supports it."""
    major, minor = capability
    known = ", ".join(built_for) or "no GPU"
    what = f"{name} (sm_{major}{minor}) cannot run torch {version('torch')}, which is built for {known}: {error}"
    if f"sm_{major}{minor}" in built_for:
        return ConfigError(what, hint="check the driver with nvidia-smi, or use the device cpu")
    if capability <= OLD_CARDS:
        hint = (
            "pip install 'torch<2.15' --index-url https://download.pytorch.org/whl/cu126, the last build for this GPU, "
            "or use the device cpu"
        )
    else:
        hint = "install the newest torch (pip install -U torch), or use the device cpu"
    return ConfigError(what, hint=hint)


def _gpus(count: int) -> str:
    return f"{count} GPUs" if count != 1 else "1 GPU"


def _why_no_gpu(count: int) -> str:
    if count:
        return f"use cuda:0{f' to cuda:{count - 1}' if count > 1 else ''}"
    if torch.version.cuda is None:
        return f"torch {version('torch')} is built without CUDA; install a CUDA build, or use the device cpu"
    return "check that nvidia-smi lists the GPU, or use the device cpu"


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / (1 << 30):.1f} GiB"
