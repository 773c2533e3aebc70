"""What commands answer with: `cache verify`, `cache-teacher` and `plan`.

In: what `cache/verify` and the stories of stage one found. Out: the JSON documents of `--json`, key by key.
"""

from typing import Literal

from kdpipe.schemas.records import Record
from kdpipe.schemas.summary import FidelitySummary, Sizes

Level = Literal["fast", "full", "deep"]
# When every byte of a cache is checked before it is used.
When = Literal["first", "always", "never"]


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


class Nats(Record):
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
    noise: Nats | None
    difference: Nats | None
    bound_nats: float | None
    problems: tuple[Problem, ...]


class VerifyReport(Record):
    """The whole answer; `against` is None where no teacher was asked."""

    ok: bool
    level: Level
    cache_id: str | None
    parts: int
    bytes: int
    problems: tuple[Problem, ...]
    notes: tuple[Note, ...] = ()
    against: AgainstReport | None = None


class PartsMade(Record):
    """Parts that are planned, that are there now, and that this run has made."""

    planned: int
    present: int
    made: int


class StageOneReport(Record):
    """What a run of `cache-teacher` has done; sizes are the cache's, rates this run's.

    `teacher_share` is the share of the time that was spent waiting on the teacher; `seconds` is wall time.
    """

    cache: str
    cache_id: str | None
    complete: bool
    parts: PartsMade
    positions: int
    bytes: int
    sizes: Sizes
    bytes_per_position: float | None
    entries_per_position: float | None
    positions_per_second: float | None
    teacher_share: float | None
    batches_halved: int
    bad_rows: int
    cut_documents: int
    known_documents: int = 0
    unlearnable_documents: int = 0
    fidelity: FidelitySummary | None
    seconds: float


class Memory(Record):
    """Bytes that are needed at once: on the teacher's device, then for answers that wait on the host, and to write."""

    weights: int
    activations: int
    logits_chunk: int
    answers: int
    writer: int
    total: int


class Probe(Record):
    """What the teacher showed while it ran for a moment; `overhead_ratio` is caching over a bare forward pass."""

    positions_per_second: float
    seconds: float
    overhead_ratio: float | None
    entries_per_position: float | None


class PlanReport(Record):
    """What a run of `cache-teacher` would take; by split where a mapping says so.

    `bytes_per_position` is by array with its `total`; `second_caches` are the bytes of caches of the same documents for
    other temperatures, by temperature, for a synthetic teacher; `memory` is that of one worker, `hours` those of all
    `workers` at once; `break_even_runs` is the number of students from which on the cache takes less time than a
    teacher that runs along.
    """

    teacher: str | None
    n_parameters: int | None
    documents: dict[str, int]
    positions: dict[str, int]
    sequences: int
    parts: dict[str, int]
    positions_per_part: int
    entries_per_position: float | None
    bytes_per_position: dict[str, float]
    bytes: int
    second_caches: dict[str, int]
    memory: Memory
    probe: Probe | None
    workers: int
    hours: float | None
    break_even_runs: int | None
    notes: tuple[str, ...]
