"""Reports of evaluations and comparisons; `Evaluation` is also the content of a run's evaluation.json.

In: what `pipeline/evaluation` measured. Out: the JSON documents of `kdpipe eval --json` and `kdpipe compare --json`.
Numbers are in nats and means over positions, except in `ByDocument`, which has sums.
"""

from pydantic import Field, model_validator

from kdpipe.schemas.choices import ComparedKind, Estimate, LossName
from kdpipe.schemas.records import Record


def loss_name(is_shifted: bool) -> LossName:
    """The name of a loss value in logs and reports."""
    return "loss_shifted" if is_shifted else "loss"


class Bucket(Record):
    """Positions by teacher entropy, from `from_nats` to below `to_nats`; None: no upper bound."""

    from_nats: float
    to_nats: float | None
    positions: int
    cross_entropy: float | None
    kl_teacher: float | None
    top1_agreement: float | None
    ece: float | None


class ByDocument(Record):
    """Sums over the evaluated positions of each document, to compare two students document by document.

    `numbers` are those of the split, in evaluation order; `agreed` counts positions where student and teacher have the
    same most probable id.
    """

    numbers: tuple[int, ...]
    positions: tuple[int, ...]
    cross_entropy: tuple[float, ...]
    kl_teacher: tuple[float, ...] | None
    agreed: tuple[int, ...] | None

    @model_validator(mode="after")
    def _check_lengths(self) -> "ByDocument":
        columns = (self.positions, self.cross_entropy, self.kl_teacher, self.agreed)
        if any(column is not None and len(column) != len(self.numbers) for column in columns):
            raise ValueError("columns differ in length")
        return self


class Evaluation(Record):
    """A student on a split of a cache.

    `loss` and `terms` are values of the training objective, during training only; `loss_shifted`: a term exceeds its
    divergence by a constant. `kl_teacher` is missing if the cache does not hold the teacher's whole mass;
    `kl_teacher_estimate` is exact, unbiased over samples, or a lower bound. `perplexity` is missing if it overflows.
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
        """The numbers without buckets, terms and documents; a shifted loss is named `loss_shifted`."""
        numbers = self.model_dump(exclude={"by_entropy", "by_document", "terms", "loss", "loss_shifted"})
        return {**numbers, self.loss_name: self.loss}

    @property
    def loss_name(self) -> LossName:
        """The name of `loss` in logs and reports."""
        return loss_name(self.loss_shifted)


class EvalSettings(Record):
    """The settings of an evaluation."""

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
    """The report of `kdpipe eval`; `tasks` has the metrics of each task."""

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


class TaskResults(Record):
    """The metrics of tasks on a run's final student, and the --limit of each; kept in its final/."""

    metrics: dict[str, dict[str, float]] = Field(default_factory=dict)
    limits: dict[str, int | None] = Field(default_factory=dict)


class Difference(Record):
    """The difference of a number to the first run's; `spread` is half the width of its 90 % interval over the documents
    that both were evaluated on, None if fewer than two."""

    value: float
    spread: float | None


class ComparedRun(Record):
    """A run, a model or the teacher: its differing settings, its metrics, and their differences to the first one.

    `differences` is empty for the first one and for one evaluated on other positions, and has only metrics that mean
    the same in both. `tasks` are metrics of `kdpipe eval --tasks`, by task and metric. `same_objective`: whether the
    loss is of the first run's objective, None without a loss. `best` names the metrics that are the best of all
    students; it is empty where they are not comparable.
    """

    run: str
    kind: ComparedKind = "run"
    best: tuple[str, ...] = ()
    settings: dict[str, str]
    step: int | None
    documents: int | None
    positions: int | None
    numbers: dict[str, float | None]
    tasks: dict[str, float] = Field(default_factory=dict)
    same_objective: bool | None
    differences: dict[str, Difference]


class CompareReport(Record):
    """The report of `kdpipe compare`; the first of `runs` is the reference."""

    runs: tuple[ComparedRun, ...]
    notes: tuple[str, ...]
