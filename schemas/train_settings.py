"""All settings of `kdpipe train`: its flags, and those that only a file or --set gives.

In: values from `settings.py`, by layer. Out: one frozen `TrainSettings`. None means a default that depends on the
student, the cache, the machine or the guard preset; the resolved values are in the run's config.yaml.
"""

import re
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, create_model, model_validator

from kdpipe.schemas.choices import (
    AlphaSchedule,
    BestMetric,
    FinalStudent,
    GuardPreset,
    KeptEnd,
    LossMode,
    LossTerm,
    OptimizerName,
    OrderName,
    PrecisionSetting,
    RateSchedule,
    Statistic,
    TrackerName,
    VerifyWhen,
)
from kdpipe.schemas.durations import Seconds
from kdpipe.schemas.losses import LOGIT_LOSSES, LOSSES
from kdpipe.schemas.model import ModelSettings, Name, StudentDevice
from kdpipe.schemas.records import Record
from kdpipe.schemas.sizes import Size
from kdpipe.schemas.targets import Temperature

Weight = Annotated[float, Field(ge=0, le=1e6)]
LARGEST_RATE: Final = 10.0
Rate = Annotated[float, Field(gt=0, le=LARGEST_RATE)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Threads = Annotated[int, Field(ge=1, le=4096)]
Count = Annotated[int, Field(ge=1, le=1 << 40)]


def _is_pair(pair: str) -> str:
    if not re.fullmatch(r"([0-9]{1,5}|[01]\.[0-9]{1,9}):[0-9]{1,5}", pair):
        raise ValueError("expected STUDENT:TEACHER, a layer number or share of the depth, and a cached layer")
    return pair


def _as_warmup(value: Any) -> Any:
    """Accept 10% and numbers in text; other text is refused as not a number."""
    if not isinstance(value, str):
        return value
    try:
        return float(value.strip().removesuffix("%")) / (100 if value.strip().endswith("%") else 1)
    except ValueError:
        return value


def _is_warmup(value: float) -> float:
    if value >= 1 and value != int(value):
        raise ValueError("expected a share below 1, or a whole number of steps")
    return value


Warmup = Annotated[float, Field(ge=0, le=1 << 40), BeforeValidator(_as_warmup), AfterValidator(_is_warmup)]


class CacheSettings(Record):
    """The cache to train from: `allow_partial` accepts an unfinished one, `pin` requires this cache_id.

    Parts of a remote cache are stored in `dir`, at most `limit` bytes, and failed requests are retried for `retry_for`
    seconds. `verify` is when the checksums of a local cache are verified [first].
    """

    path: Name | None = None
    allow_partial: bool = False
    pin: Annotated[str, Field(pattern=r"^[0-9a-f]{12,64}$")] | None = None
    dir: Name | None = None
    limit: Size | None = None
    retry_for: Seconds | None = None
    verify: VerifyWhen | None = None


class StudentSettings(ModelSettings):
    """The student: a model folder, a Hub id, a config.json for random weights, or a preset."""

    lora: bool = False
    lora_rank: int = Field(default=16, ge=1, le=4096)
    lora_alpha: float = Field(default=32.0, gt=0)
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    freeze_head: bool = False
    gradient_checkpointing: bool = False


if TYPE_CHECKING:
    TeacherLoss = str

    class LossWeights(Record):
        """Weights of the loss terms by name; None: CE and the chosen logit loss follow mode and alpha, others are 0."""
else:
    TeacherLoss = Literal[tuple(name for name, loss in LOGIT_LOSSES.items() if loss.compares != "label")]
    LossWeights = create_model(
        "LossWeights", __base__=Record, __module__=__name__, **dict.fromkeys(LOSSES, (Weight | None, None))
    )


class HiddenLossSettings(Record):
    """Losses on hidden states: pairs of layers [by depth], anchors per sequence for relations between positions,
    sequences per group for losses that compare sequences, and whether a router mixes teacher layers."""

    pairs: tuple[Annotated[str, AfterValidator(_is_pair)], ...] = ()
    anchors: int = Field(default=64, ge=2, le=4096)
    group: int = Field(default=4, ge=1, le=4096)
    router: bool = False


class PositionSelection(Record):
    """Applies a term only to the share of positions with the lowest or highest statistic in their sequence."""

    term: LossTerm
    by: Statistic
    keep: KeptEnd
    share: Share


class LossSettings(Record):
    """The loss: alpha x CE + (1 - alpha) x a logit loss at a temperature, plus the terms of `weights`.

    `allow_coarse` permits a temperature at which the cache's exact ids have less than a fifth of the teacher's mass.
    The alpha schedule `wsd` starts with CE only, reaches alpha after 2 % of the steps, and `alpha_end` with the decay
    of the learning rate.
    """

    mode: LossMode = "hybrid"
    alpha: float = Field(default=0.1, ge=0, le=1)
    alpha_schedule: AlphaSchedule = "constant"
    alpha_end: float = Field(default=0.5, ge=0, le=1)
    logit: TeacherLoss = "forward_kl"
    temperature: Temperature = 1.0
    allow_coarse: bool = False
    tail_weight: float | None = Field(default=None, ge=0, le=100)
    skew: float | None = Field(default=None, gt=0, lt=1)
    beta: float | None = Field(default=None, gt=0, lt=1)
    weights: LossWeights = LossWeights()
    hidden: HiddenLossSettings = HiddenLossSettings()
    select: tuple[PositionSelection, ...] = Field(default=(), max_length=8)

    @model_validator(mode="after")
    def _check_selections(self) -> "LossSettings":
        if len({selection.term for selection in self.select}) != len(self.select):
            raise ValueError("at most one selection per term")
        return self


class Phase(Record):
    """A part of the run, until a share of its steps; overrides `losses` and `run`."""

    until: Share
    weights: LossWeights = LossWeights()
    alpha: float | None = Field(default=None, ge=0, le=1)
    temperature: Temperature | None = None
    order: OrderName | None = None


class LearningRates(Record):
    """Peak learning rates of the parameter groups; None: the default of the group, scaled by `optimizer.lr`."""

    matrices: Rate | None = None
    tables: Rate | None = None
    vectors: Rate | None = None
    maps: Rate | None = None
    router: Rate | None = None


class WeightDecays(Record):
    """Weight decay of the parameter groups; None: `optimizer.weight_decay` for matrices and tables, 0 for vectors."""

    matrices: Decay | None = None
    tables: Decay | None = None
    vectors: Decay | None = None


class OptimizerSettings(Record):
    """Muon for matrices and AdamW for the rest, or AdamW for everything; None: by kind and size of student.

    `lr` is the learning rate of the matrices and scales those of the other groups; `rates` sets single groups.
    """

    kind: OptimizerName | None = None
    lr: Rate | None = None
    rates: LearningRates = LearningRates()
    weight_decay: Decay = 0.01
    decays: WeightDecays = WeightDecays()
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    momentum: float | None = Field(default=None, ge=0, lt=1)
    clip: float | None = Field(default=None, gt=0)


class ScheduleSettings(Record):
    """Learning rate schedule: warm-up, then a decay to `floor`, a share of the peak.

    `warmup` is a share of all steps, or from 1 on a number of them. Only `wsd`, which is constant until its decay, has
    a `decay`, a share of all steps.
    """

    kind: RateSchedule = "cosine"
    warmup: Warmup = 0.1
    decay: Share = 0.2
    floor: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _check_shares(self) -> "ScheduleSettings":
        if self.kind == "wsd" and self.warmup < 1 and self.warmup + self.decay > 1:
            raise ValueError("warmup + decay exceed 1")
        return self


class RunSettings(Record):
    """Length, batches and data order of the run: `epochs` [1], or `max_steps`."""

    epochs: float | None = Field(default=None, gt=0, le=1e6)
    max_steps: Count | None = None
    batch_size: int = Field(default=8, ge=1, le=1 << 16)
    accumulate: int = Field(default=1, ge=1, le=1 << 16)
    order: OrderName = "shuffled"
    phases: tuple[Phase, ...] = Field(default=(), max_length=64)

    @model_validator(mode="after")
    def _check_phases(self) -> "RunSettings":
        ends = [phase.until for phase in self.phases]
        if ends != sorted(set(ends)):
            raise ValueError("each phase must end later than the one before")
        if ends and ends[-1] != 1:
            raise ValueError("the last phase must end at 1")
        return self


class EvaluationSettings(Record):
    """Evaluation on the validation split: `every` so many steps [a tenth of the run] and at the end, on at most `limit`
    sequences; `metric` selects the best student [loss; cross_entropy if loss weights change]. Each evaluation also
    continues `samples` validation prompts by `sample_tokens` tokens, in samples.jsonl."""

    every: Count | None = None
    limit: Count | None = 256
    metric: BestMetric | None = None
    samples: int = Field(default=3, ge=0, le=100)
    sample_tokens: int = Field(default=32, ge=1, le=4096)


class CheckpointSettings(Record):
    """Checkpoints: `every` so many steps [a tenth of the run] and at the end; the newest `keep` and the best are kept;
    `final` is the student saved in OUT/final."""

    every: Count | None = None
    keep: int = Field(default=2, ge=1, le=1000)
    final: FinalStudent = "last"


class GuardSettings(Record):
    """Policy for bad steps; None: the value of the preset.

    A step is skipped if its gradient norm exceeds `sigma` deviations of the last `window`, `median_factor` times their
    median, or `skip_gradient_norm`; after `patience` skips in a row the run rolls back to the last good snapshot, with
    `rate_factor` of the learning rate, at most `rollbacks` times.
    """

    preset: GuardPreset = "standard"
    sigma: float | None = Field(default=None, gt=0)
    window: int | None = Field(default=None, ge=8, le=1 << 16)
    median_factor: float | None = Field(default=None, gt=1, le=1e6)
    skip_gradient_norm: float | None = Field(default=None, gt=0)
    patience: int | None = Field(default=None, ge=1)
    rollbacks: int | None = Field(default=None, ge=0)
    rate_factor: float | None = Field(default=None, gt=0, le=1)
    ce_only_steps: int = Field(default=0, ge=0)
    snapshot_every: Count | None = None
    clamp_logits: float | None = Field(default=None, gt=0)
    clamp_loss: float | None = Field(default=None, gt=0)


class TrainMachineSettings(Record):
    """Use of the machine; `fp16-pure` trains 16-bit weights without master weights or loss scaling.

    `portion` is the micro-batch size in sequences [the batch on a GPU; as many as have 1,024 tokens on a CPU, which
    takes as long and less memory]. The loss is that of the whole step either way.
    """

    device: StudentDevice = "auto"
    precision: PrecisionSetting = "auto"
    threads: Threads | Literal["auto"] = "auto"
    portion: int | None = Field(default=None, ge=1, le=1 << 16)
    ahead: int = Field(default=4, ge=1, le=1024)


class TrainSettings(Record):
    """All settings of a run."""

    cache: CacheSettings = CacheSettings()
    student: StudentSettings = StudentSettings()
    losses: LossSettings = LossSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    run: RunSettings = RunSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    saving: CheckpointSettings = CheckpointSettings()
    guard: GuardSettings = GuardSettings()
    machine: TrainMachineSettings = TrainMachineSettings()
    report_to: tuple[TrackerName, ...] = ()
    out: Name | None = None
    seed: int = Field(default=0, ge=0, lt=1 << 63)

    @model_validator(mode="after")
    def _check_trackers(self) -> "TrainSettings":
        if len(set(self.report_to)) != len(self.report_to):
            raise ValueError("duplicate tracker in report_to")
        return self


class TrainOptions(Record):
    """Options of one call, which are not settings of the run."""

    resume_from: Name | None = None
    dry_run: bool = False
    overwrite: bool = False
