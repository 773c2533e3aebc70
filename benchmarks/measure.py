"""Helpers of the benchmarks: one pinned core, medians, rates, a description of the machine."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def pin_to_one_core() -> None:
    """Pin the process to one core, if supported."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def seconds(work: Callable[[], object], rounds: int = 5) -> float:
    """The median of some rounds, after one warm-up."""
    work()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def machine() -> dict[str, Any]:
    """Processor, cores and versions."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {"processor": model, "cores": os.cpu_count(), "python": platform.python_version(), "numpy": np.__version__}


def memcpy_rate() -> float:
    """Bytes per second of copying 256 MiB in memory."""
    source = np.ones(1 << 28, np.uint8)
    target = np.empty_like(source)
    return source.nbytes / seconds(lambda: np.copyto(target, source))


def in_child(program: str, *words: str) -> Any:
    """Run a program in a child process and parse the JSON document that it prints."""
    command = [sys.executable, "-c", program, *words]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def rounded(value: Any) -> Any:
    """Round floats to four digits."""
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value
