"""How much memory was needed: by the process, and on its GPU; and whether an error says that there is no more.

In: nothing, or an error. Out: bytes at most so far; None where the system does not say.
"""

import sys
from pathlib import Path

import torch

if sys.platform != "win32":
    import resource

# What torch says when the CPU has no memory left; it has no error of its own for it.
OF_THE_CPU = ("not enough memory", "can't allocate memory", "Cannot allocate memory")

STATUS = Path("/proc/self/status")


def peak_process_bytes() -> int | None:
    """The most that this process had in memory.

    Linux says it of the process itself; what getrusage says there is the parent's, if that was larger at the fork.
    """
    if sys.platform == "win32":
        return None
    if STATUS.is_file():
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def peak_device_bytes(device: torch.device) -> int | None:
    """The most that tensors took of a GPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is Python's, torch's or the CPU allocator's word for having no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OF_THE_CPU)
