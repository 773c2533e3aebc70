"""The record of a finished run, OUT/finished.json: which command has ended, what is in final/, what it answered.

In: JSON. Out: a frozen record. The command that is run again is answered from it, without torch or a model.
"""

from typing import Literal

from kdpipe.schemas.checkpoint import Natural, RunRecord
from kdpipe.schemas.choices import StudentSource
from kdpipe.schemas.manifest import FileRecord, Sha256
from kdpipe.schemas.model import Name
from kdpipe.schemas.records import Record
from kdpipe.schemas.run_report import TrainReport


class FinishedRun(Record):
    """A run that has ended.

    `asked` is the command as it was given, with nothing filled in; its `student` is the digest of a config file or of
    weights, or the name of a preset or of a model of the hub, as `source` says. `run_sha256` is the digest of run.json,
    `files` are those of final/, which holds the student of step `step`.
    """

    version: Literal[1]
    kdpipe: Name
    asked: RunRecord
    source: StudentSource
    run_sha256: Sha256
    step: Natural
    files: dict[Name, FileRecord]
    report: TrainReport
