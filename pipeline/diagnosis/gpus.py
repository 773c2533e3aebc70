"""Check of the GPUs: each runs a small kernel, since a GPU can be visible and still run none."""

import torch

from kdpipe.pipeline.models.devices import run_kernel, unusable
from kdpipe.schemas.doctor_report import Check, passed, problem


def gpus() -> list[Check]:
    count = torch.cuda.device_count()
    if not count:
        return [passed("devices", f"cpu; torch {torch.__version__} sees no GPU")]
    return [_check(number) for number in range(count)]


def _check(number: int) -> Check:
    name, capability = torch.cuda.get_device_name(number), torch.cuda.get_device_capability(number)
    try:
        run_kernel(torch.device("cuda", number))
    except torch.OutOfMemoryError:
        return problem("devices", f"cuda:{number} ({name}) has no free memory", "end the program that uses it")
    except RuntimeError as error:
        first = next(iter(str(error).splitlines()), "?")
        refusal = unusable(name, capability, torch.cuda.get_arch_list(), first)
        return problem("devices", f"cuda:{number}: {refusal.message}", refusal.hint or "use the device cpu")
    free, total = torch.cuda.mem_get_info(number)
    return passed("devices", f"cuda:{number} {name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free")
