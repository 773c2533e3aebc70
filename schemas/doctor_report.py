"""What `kdpipe doctor` is to check, and its report: one line per check, also the JSON document of `--json`."""

from typing import Literal

from kdpipe.schemas.records import Record

Level = Literal["ok", "warning", "problem"]


class DoctorRequest(Record):
    """A run, or an output directory [.] and the names of a cache and models."""

    run: str | None = None
    cache: str | None = None
    teacher: str | None = None
    student: str | None = None
    out: str | None = None


class Check(Record):
    """What was found, and what to do about it; `do` is empty where nothing needs doing."""

    name: str
    level: Level
    what: str
    do: str = ""


class DoctorReport(Record):
    """`ok` is false if a check found a problem."""

    ok: bool
    checks: tuple[Check, ...]


def passed(name: str, what: str, do: str = "") -> Check:
    return Check(name=name, level="ok", what=what, do=do)


def warning(name: str, what: str, do: str) -> Check:
    return Check(name=name, level="warning", what=what, do=do)


def problem(name: str, what: str, do: str) -> Check:
    return Check(name=name, level="problem", what=what, do=do)
