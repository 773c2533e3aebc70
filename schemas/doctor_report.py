"""The report of `kdpipe doctor`: one line per check, also the JSON document of `--json`."""

from typing import Literal

from kdpipe.schemas.records import Record

Level = Literal["ok", "warning", "problem"]


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


def passed(name: str, what: str) -> Check:
    return Check(name=name, level="ok", what=what)


def warning(name: str, what: str, do: str) -> Check:
    return Check(name=name, level="warning", what=what, do=do)


def problem(name: str, what: str, do: str) -> Check:
    return Check(name=name, level="problem", what=what, do=do)
