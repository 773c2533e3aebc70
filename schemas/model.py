"""Settings that name a model: the teacher of stage one, the student of stage two.

In: flags and files. Out: a name that transformers loads, a folder or a hub id, and what goes with it.
"""

import re
from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator, Field

from kdpipe.schemas.records import Record

Name = Annotated[str, Field(min_length=1, max_length=2000)]


def _is_device(*more: str) -> Callable[[str], str]:
    words = ("auto", "cpu", *more)

    def check(name: str) -> str:
        if name in words or re.fullmatch(r"cuda:[0-9]{1,4}", name):
            return name
        if "all" not in words and (name == "all" or "," in name):
            raise ValueError("train uses one device: cpu, cuda, mps, or one GPU such as cuda:0")
        raise ValueError(f"a device is {', '.join(words)}, or one GPU such as cuda:0")

    return check


Device = Annotated[str, AfterValidator(_is_device("cuda", "mps"))]
Devices = Annotated[str, AfterValidator(_is_device("cuda", "all"))]


class ModelSettings(Record):
    """A model folder or Hub id; its own code runs only with `trust_remote_code`."""

    name: Name | None = None
    revision: Name | None = None
    trust_remote_code: bool = False
