"""What evaluations and comparisons answer with; `Evaluation` is also what evaluation.json in a run's folder holds.

In: what `pipeline/evaluation` measured. Out: the JSON documents of `kdpipe eval --json` and `kdpipe compare --json`.
All numbers are in nats and means over positions, but for `ByDocument`, which holds sums.
"""

from pydantic import Field, model_validator

from kdpipe.schemas.choices import Estimate, LossName
from kdpipe.schemas.records import Record


def loss_name(is_shifted: bool) -> LossName:
    """What the value of an objective is called where it is shown."""
    return "loss_shifted" if is_shifted else "loss"


class Bucket(Record):
    """The positions whose teacher entropy lies from one bound up to below the other, None: without end."""

    from_nats: float
    to_nats: float | None
    positions: int
    cross_entropy: float | None
    kl_teacher: float | None
    top1_agreement: float | None
    ece: float | None


class ByDocument(Record):
    """Sums over the evaluated positions of each document, so that two students can be compared document by document.

    `numbers` are the split's, in the order in which they were first read; `agreed` counts the positions where student
    and teacher hold the same id most probable.
    """

    numbers: tuple[int, ...]
    positions: tuple[int, ...]
    cross_entropy: tuple[float, ...]
    kl_teacher: tuple[float, ...] | None
    agreed: tuple[int, ...] | None

    @model_validator(mode="after")
    def _as_long(self) -> "ByDocument":
        columns = (self.positions, self.cross_entropy, self.kl_teacher, self.agreed)
        if any(column is not None and len(column) != len(self.numbers) for column in columns):
            raise ValueError("every column has a number for each document")
        return self


class Evaluation(Record):
    """A student beside a split of a cache.

    `loss` is the training objective's own value and `terms` its raw terms, where the one who asked trains;
    `loss_shifted` says that a term of it is larger than its divergence by a constant;
    `kl_teacher` is None where the cache does not know the teacher's whole mass, and `kl_teacher_estimate` says what it
    is: exact, unbiased over draws, or a lower bound. `perplexity` is None where it passes the largest number.
    """

    cache_id: str | None
    split: str
    step: int | None = None
    positions: int
    cross_entropy: float
    perplexity: float | None
    kl_teacher: float | None
    kl_teacher_estimate: Estimate | None
    top1_agreement: float | None
    ece: float
    loss: float | None = None
    loss_shifted: bool = False
    terms: dict[str, float] = Field(default_factory=dict)
    by_entropy: tuple[Bucket, ...]
    by_document: ByDocument

    @property
    def summary(self) -> dict[str, float | int | str | None]:
        """The numbers alone, without buckets, terms and documents; a shifted loss is called `loss_shifted`."""
        numbers = self.model_dump(exclude={"by_entropy", "by_document", "terms", "loss", "loss_shifted"})
        return {**numbers, self.loss_name: self.loss}

    @property
    def loss_name(self) -> LossName:
        """What `loss` is called where it is shown."""
        return loss_name(self.loss_shifted)


class EvalSettings(Record):
    """What was asked, and what it was measured with."""

    cache: str
    cache_id: str | None
    split: str
    student: str
    sequences: int
    documents: int
    limit: int | None
    device: str
    precision: str


class EvalReport(Record):
    """What `kdpipe eval` answers with; `tasks` has the metrics of each task that was named."""

    cross_entropy: float
    perplexity: float | None
    kl_teacher: float | None
    kl_teacher_estimate: Estimate | None
    top1_agreement: float | None
    ece: float
    positions: int
    by_entropy: tuple[Bucket, ...]
    tasks: dict[str, dict[str, float]]
    settings: EvalSettings
    notes: tuple[str, ...]


class Difference(Record):
    """How much higher a number is than the first run's; `spread` is half the width of its 90 % interval over the
    documents that both were evaluated on, None where there are fewer than two."""

    value: float
    spread: float | None


class ComparedRun(Record):
    """One run: what differs in its settings, its numbers, and how they differ from the first run's.

    `differences` is empty for the first, and for one that was evaluated on other positions; it holds only readings that
    mean the same in both runs. `same_objective` says whether the loss is that of the first run's objective, None where
    one of them has no evaluation.
    """

    run: str
    settings: dict[str, str]
    step: int | None
    documents: int | None
    positions: int | None
    numbers: dict[str, float | None]
    same_objective: bool | None
    differences: dict[str, Difference]


class CompareReport(Record):
    """What `kdpipe compare` answers with."""

    runs: tuple[ComparedRun, ...]
    notes: tuple[str, ...]
