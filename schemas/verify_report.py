"""The report of `cache verify`: the JSON document of `--json`, key by key."""

from kdpipe.schemas.choices import VerifyLevel
from kdpipe.schemas.records import Record


class Problem(Record):
    """A problem; `part`: None where it concerns the whole cache."""

    part: int | None
    file: str
    what: str
    do: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


class Note(Record):
    """A finding that is no failure, such as damage in a file that reading does not need."""

    part: int | None
    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


class NatsDifference(Record):
    """The largest and the mean of some differences of log-probabilities."""

    max_nats: float
    mean_nats: float


class AgainstReport(Record):
    """A cache beside its teacher: `noise` is the teacher against itself at other batch shapes, `bound_nats` what the
    codec and that noise explain. None where the model was not run, since it cannot be the teacher."""

    ok: bool
    teacher: str
    documents: int
    positions: int
    noise: NatsDifference | None
    difference: NatsDifference | None
    bound_nats: float | None
    problems: tuple[Problem, ...]


class VerifyReport(Record):
    """The report; `against`: None without --against."""

    ok: bool
    level: VerifyLevel
    cache_id: str | None
    parts: int
    bytes: int
    problems: tuple[Problem, ...]
    notes: tuple[Note, ...] = ()
    against: AgainstReport | None = None
