"""What verification answers: every problem with its place and its remedy.

In: what `cache/verify` found. Out: the JSON document of `kdpipe cache verify --json`.
Before it: `records.py`. After it: `cache/part_files.py`, `cache/verify/`, `cli/cache/verify.py`.
"""

from typing import Literal

from kdpipe.schemas.records import Record

Level = Literal["fast", "full", "deep"]


class Problem(Record):
    """One thing that is wrong; `part` is None where it concerns the whole cache."""

    part: int | None
    file: str
    what: str
    do: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


class VerifyReport(Record):
    """The whole answer."""

    ok: bool
    level: Level
    cache_id: str | None
    parts: int
    bytes: int
    problems: tuple[Problem, ...]
