"""How much memory was needed: by the process, and on its GPU.

In: nothing. Out: bytes at most so far; None where the system does not say. Before it: the loop, and whoever measures.
After it: metrics.jsonl, reports.
"""

import sys

import torch

if sys.platform != "win32":
    import resource


def peak_process_bytes() -> int | None:
    """The most that this process had in memory; macOS counts bytes, Linux kibibytes."""
    if sys.platform == "win32":
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def peak_device_bytes(device: torch.device) -> int | None:
    """The most that tensors took of a GPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
