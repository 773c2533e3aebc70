"""What a lock file says: which process writes to the folder, and since when.

In: one line of JSON. Out: a frozen record.
"""

from typing import Annotated

from pydantic import Field

from kdpipe.schemas.records import Record

Word = Annotated[str, Field(max_length=300)]


class LockRecord(Record):
    """The holder of a lock: `started` is its start in ticks since the machine's `boot`; it took the lock at `since`.

    `machine` tells two machines of one host name apart; it is empty where the machine has no such id.
    """

    pid: Annotated[int, Field(ge=0, le=1 << 40)]
    started: Word
    host: Word
    machine: Word
    boot: Word
    pid_space: Word
    since: Word
