"""The record of a finished run, OUT/finished.json: its command, the files of final/, its report.

In: JSON. Out: a frozen record, from which a repeated command is answered without torch or a model.
"""

from typing import Literal

from kdpipe.schemas.checkpoint import Natural, RunRecord
from kdpipe.schemas.choices import StudentSource
from kdpipe.schemas.manifest import FileRecord, Sha256
from kdpipe.schemas.model import Name
from kdpipe.schemas.records import Record
from kdpipe.schemas.run_report import TrainReport


class FinishedRun(Record):
    """A finished run.

    `command` has the settings as given, without defaults filled in; its `student` is the digest of a config file or of
    weights, or the name of a preset or Hub model, depending on `source`. `run_sha256` is the digest of run.json,
    `files` are those of final/, which has the student of step `step`.
    """

    version: Literal[1]
    kdpipe: Name
    command: RunRecord
    source: StudentSource
    run_sha256: Sha256
    step: Natural
    files: dict[Name, FileRecord]
    report: TrainReport
