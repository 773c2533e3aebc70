"""Checks of the machine that need no torch: versions, cores, file system, hub and extras."""

import importlib.util
import os
import platform
import shutil
import socket
import tempfile
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from kdpipe.cache.durable.lock import locked
from kdpipe.pipeline.models.cpus import usable_cpus
from kdpipe.schemas.doctor_report import Check, passed, problem, warning
from kdpipe.schemas.errors import KdpipeError

LIBRARIES = ("kdpipe", "torch", "transformers", "datasets", "numpy", "pyarrow", "zarr")
# Module -> (extra, what it enables).
EXTRAS = {
    "s3fs": ("s3", "caches in S3"),
    "gcsfs": ("gcs", "caches in Google Cloud Storage"),
    "peft": ("peft", "--lora"),
    "wandb": ("wandb", "--report-to wandb"),
    "tensorboard": ("tensorboard", "--report-to tensorboard"),
    "trackio": ("trackio", "--report-to trackio"),
    "mlflow": ("mlflow", "--report-to mlflow"),
    "lm_eval": ("eval", "eval --tasks"),
    "cryptography": ("sign", "cache sign"),
    "bitsandbytes": ("quant", "quantized teachers on a GPU"),
    "accelerate": ("large", "teachers that are split over several GPUs"),
    "hf_xet": ("hub", "fast transfers with hf:// caches"),
}
HUB = ("huggingface.co", 443)
HUB_SECONDS = 3.0
PROBE_BYTES = 16 << 20
# A cache is written and read at tens of MB/s; below this the disk is slower than a teacher on one GPU.
SLOW_BYTES_PER_SECOND = 20e6
LITTLE_SPACE_BYTES = 5 << 30


def versions() -> Check:
    found, missing = [f"Python {platform.python_version()}"], []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return problem("versions", f"not installed: {', '.join(missing)}", "pip install kdpipe")
    return passed("versions", ", ".join(found))


def cores() -> Check:
    usable, present = usable_cpus(), os.cpu_count() or 1
    what = f"{usable} usable of {present}"
    load = None
    with suppress(OSError, AttributeError):
        load = os.getloadavg()[0]
        what += f", load {load:.1f}"
    if load is not None and load > 1.5 * usable:
        return warning("cores", what, "other programs use the cores: training will be slower than estimated")
    return passed("cores", what)


def file_system(folder: Path) -> list[Check]:
    """Write, fsync, rename, link and lock in a temporary folder of `folder`, or of its nearest existing parent."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    operation = "write"
    try:
        with tempfile.TemporaryDirectory(prefix=".kdpipe-doctor-", dir=place) as temporary:
            path = Path(temporary) / "probe"
            began = time.perf_counter()
            with path.open("wb") as file:
                file.write(os.urandom(PROBE_BYTES))
                operation = "fsync"
                file.flush()
                os.fsync(file.fileno())
            speed = PROBE_BYTES / max(time.perf_counter() - began, 1e-6)
            operation = "rename"
            renamed = path.replace(path.with_name("renamed"))
            operation = "link"
            os.link(renamed, path)
            operation = "lock"
            with locked(Path(temporary), lambda _: None):
                pass
    except (OSError, KdpipeError) as error:
        return [problem("file system", f"{operation} fails in {place}: {error}", "choose another --out")]
    checks = [passed("file system", f"write, fsync, rename, link and lock work in {place}")]
    what = f"writes {speed / 1e6:.0f} MB/s"
    checks.append(
        warning("disk speed", what, "write to a local disk, and copy the result with kdpipe cache copy")
        if speed < SLOW_BYTES_PER_SECOND
        else passed("disk speed", what)
    )
    free = shutil.disk_usage(place).free
    what = f"{free / 1e9:,.1f} GB free"
    checks.append(
        warning("disk space", what, "free some space, or choose another --out; kdpipe plan estimates a cache")
        if free < LITTLE_SPACE_BYTES
        else passed("disk space", what)
    )
    return checks


def hub(address: tuple[str, int] = HUB, seconds: float = HUB_SECONDS) -> Check:
    name = f"{address[0]}:{address[1]}"
    try:
        with socket.create_connection(address, timeout=seconds):
            return passed("hub", f"{name} is reachable")
    except OSError as error:
        return warning("hub", f"{name} is not reachable: {error}", "use local folders for models and data")


def extras() -> list[Check]:
    missing = [row for module, row in EXTRAS.items() if importlib.util.find_spec(module) is None]
    present = [extra for module, (extra, _) in EXTRAS.items() if importlib.util.find_spec(module) is not None]
    checks = [passed("extras", ", ".join(present) or "none installed")]
    return checks + [
        passed("extra", f"{extra} is not installed; {enables} needs: pip install 'kdpipe[{extra}]'")
        for extra, enables in missing
    ]
