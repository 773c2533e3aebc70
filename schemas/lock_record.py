"""The content of a lock file: the process that writes to a folder, and since when."""

from typing import Annotated

from pydantic import Field

from kdpipe.schemas.records import Record

Word = Annotated[str, Field(max_length=300)]


class LockRecord(Record):
    """The holder of a lock: `started` is its start in ticks since the machine's `boot`; it took the lock at `since`.

    `machine` distinguishes two machines of one host name; it is empty if the machine has no id.
    """

    pid: Annotated[int, Field(ge=0, le=1 << 40)]
    started: Word
    host: Word
    machine: Word
    boot: Word
    pid_space: Word
    since: Word
