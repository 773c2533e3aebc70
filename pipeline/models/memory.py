"""Peak memory of the process and its GPU, and recognition of out-of-memory errors."""

import sys
from pathlib import Path

import torch

if sys.platform != "win32":
    import resource

# Messages of torch when CPU memory runs out, which has no error class.
CPU_MESSAGES = ("not enough memory", "can't allocate memory", "Cannot allocate memory")

STATUS = Path("/proc/self/status")


def peak_process_bytes() -> int | None:
    """Peak resident memory; None if unknown. On Linux getrusage may report the larger parent's, so /proc is used."""
    if sys.platform == "win32":
        return None
    if STATUS.is_file():
        return _status_bytes("VmHWM:")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def process_bytes() -> int | None:
    """Resident memory now; None where it is unknown, outside Linux."""
    return _status_bytes("VmRSS:") if STATUS.is_file() else None


def _status_bytes(name: str) -> int | None:
    return next(
        (int(line.split()[1]) * 1024 for line in STATUS.read_text().splitlines() if line.startswith(name)), None
    )


def peak_device_bytes(device: torch.device) -> int | None:
    """Peak GPU memory of tensors."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, torch or the CPU allocator ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in CPU_MESSAGES)
