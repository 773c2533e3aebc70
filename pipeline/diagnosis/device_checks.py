"""Check of the devices: each runs a small kernel, since a GPU can be visible and still run none."""

from pathlib import Path

import torch

from kdpipe.pipeline.models.devices import choose_dtype, run_kernel, unusable
from kdpipe.schemas.counts import size
from kdpipe.schemas.doctor_report import Check, passed, problem, warning

# Present where an NVIDIA driver is loaded.
DRIVER = Path("/proc/driver/nvidia/version")


def check_devices() -> list[Check]:
    n_gpus = torch.cuda.device_count()
    checks = [_gpu(number) for number in range(n_gpus)]
    if torch.backends.mps.is_available():
        checks.append(_check_other(torch.device("mps")))
    return checks or [_without_gpu()]


def _gpu(number: int) -> Check:
    device = torch.device("cuda", number)
    name, capability = torch.cuda.get_device_name(number), torch.cuda.get_device_capability(number)
    try:
        run_kernel(device)
    except torch.OutOfMemoryError:
        return problem("devices", f"cuda:{number} ({name}) has no free memory", "stop the program that uses it")
    except RuntimeError as error:
        first = next(iter(str(error).splitlines()), "?")
        refusal = unusable(name, capability, torch.cuda.get_arch_list(), first)
        return problem("devices", f"cuda:{number}: {refusal.message}", refusal.hint or "use --devices cpu")
    free, total = torch.cuda.mem_get_info(number)
    dtype = choose_dtype("auto", device)
    memory = f"{size(free)} of {size(total)} free"
    return passed("devices", f"cuda:{number} ({name}) runs kernels, {memory}, computes in {dtype}")


def _check_other(device: torch.device) -> Check:
    try:
        run_kernel(device)
    except RuntimeError as error:
        first = next(iter(str(error).splitlines()), "?")
        return problem("devices", f"{device} runs no kernel: {first}", "update torch, or use --devices cpu")
    return passed("devices", f"{device} runs kernels")


def _without_gpu() -> Check:
    """The CPU, and why a GPU of this machine is not visible to torch."""
    check = _check_other(torch.device("cpu"))
    if check.level == "problem" or not DRIVER.exists():
        return check.model_copy(update={"what": f"{check.what}; torch {torch.__version__} sees no GPU"})
    what = f"this machine has an NVIDIA driver, but torch {torch.__version__} sees no GPU"
    if torch.version.cuda is None:
        return warning("devices", f"{what}: it is built without CUDA", "pip install --force-reinstall torch")
    do = "check that nvidia-smi lists a GPU, that its driver supports this CUDA version, and CUDA_VISIBLE_DEVICES"
    return warning("devices", f"{what}; it is built for CUDA {torch.version.cuda}", do)
