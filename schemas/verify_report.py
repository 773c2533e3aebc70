"""What `cache verify` answers with.

In: what `cache/verify` and `verify --against` found. Out: the JSON document of `--json`, key by key.
"""

from kdpipe.schemas.choices import VerifyLevel
from kdpipe.schemas.records import Record


class Problem(Record):
    """One thing that is wrong; `part` is None where it concerns the whole cache."""

    part: int | None
    file: str
    what: str
    do: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


class Note(Record):
    """Something that verification saw and that fails nothing: damage where no reader looks, for instance."""

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
    codec and that noise explain. They are None where the model was not run, since it cannot be the teacher."""

    ok: bool
    teacher: str
    documents: int
    positions: int
    noise: NatsDifference | None
    difference: NatsDifference | None
    bound_nats: float | None
    problems: tuple[Problem, ...]


class VerifyReport(Record):
    """The whole answer; `against` is None where no teacher was asked."""

    ok: bool
    level: VerifyLevel
    cache_id: str | None
    parts: int
    bytes: int
    problems: tuple[Problem, ...]
    notes: tuple[Note, ...] = ()
    against: AgainstReport | None = None
