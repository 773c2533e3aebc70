"""Settings that name a model: the teacher of stage one, the student of stage two.

In: flags and files. Out: a name that transformers loads, a folder or a hub id, and what goes with it.
"""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from kdpipe.schemas.records import Record

Name = Annotated[str, Field(min_length=1, max_length=2000)]


def check_devices(devices: str) -> str:
    """Check the value of --devices: a word, or GPUs by number."""
    numbers = devices.split(",")
    if devices not in DEVICE_WORDS and not all(re.fullmatch(r"cuda:[0-9]{1,4}", name) for name in numbers):
        raise ValueError(f"expected {', '.join(DEVICE_WORDS)}, or GPUs such as cuda:0 or cuda:0,cuda:1")
    if len(set(numbers)) < len(numbers):
        raise ValueError("duplicate device")
    return devices


def _check_single_device(devices: str) -> str:
    if "," in check_devices(devices):
        raise ValueError("train uses one device: cpu, cuda, mps, or one GPU such as cuda:0")
    return devices


def _check_float64(devices: str) -> str:
    if check_devices(devices) == "mps":
        raise ValueError("a teacher's predictions need float64, which Apple GPUs lack: use cpu or cuda")
    return devices


DEVICE_WORDS = ("auto", "cpu", "cuda", "mps", "all")
StudentDevice = Annotated[str, AfterValidator(_check_single_device)]
TeacherDevices = Annotated[str, AfterValidator(_check_float64)]


class ModelSettings(Record):
    """A model folder or Hub id; its own code runs only with `trust_remote_code`."""

    name: Name | None = None
    revision: Name | None = None
    trust_remote_code: bool = False
