"""Everything that stage two can be told: the flags of `kdpipe train`, and what only a file or --set says.

In: values from `settings.py`, by layer. Out: one frozen `TrainSettings`. A value that is None is settled later, by what
is found: the student, the cache, the machine, the preset of the guard; what it became is in the run's config.yaml.
"""

import re
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import AfterValidator, Field, create_model, model_validator

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
from kdpipe.schemas.model import Device, ModelSettings, Name
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
        raise ValueError("a pair is STUDENT:TEACHER, a layer's number or share of the depth, and a cached layer")
    return pair


class CacheSettings(Record):
    """What is learnt from; `allow_partial` takes an unfinished one as it is, `pin` the one of this cache_id alone.

    Parts of a cache behind a URL are kept in `dir` on this machine, at most `limit` bytes of them, and its place is
    retried for `retry_for` seconds. `verify` says when
    every byte of a cache in a folder is checked: before its `first` use on this machine unless said.
    """

    path: Name | None = None
    allow_partial: bool = False
    pin: Annotated[str, Field(pattern=r"^[0-9a-f]{12,64}$")] | None = None
    dir: Name | None = None
    limit: Size | None = None
    retry_for: Seconds | None = None
    verify: VerifyWhen | None = None


class StudentSettings(ModelSettings):
    """Who learns: a model folder, a hub id, a config in JSON for a fresh student, or a preset's name."""

    lora: bool = False
    lora_rank: int = Field(default=16, ge=1, le=4096)
    lora_alpha: float = Field(default=32.0, gt=0)
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    freeze_head: bool = False
    gradient_checkpointing: bool = False


if TYPE_CHECKING:
    TeacherLoss = str

    class LossWeights(Record):
        """Weights of the losses by name; None: cross-entropy and the chosen logit loss follow mode and alpha, others
        are 0."""
else:
    TeacherLoss = Literal[tuple(name for name, loss in LOGIT_LOSSES.items() if loss.compares != "label")]
    LossWeights = create_model(
        "LossWeights", __base__=Record, __module__=__name__, **dict.fromkeys(LOSSES, (Weight | None, None))
    )


class HiddenLossSettings(Record):
    """How cached states are met: pairs of layers (by depth unless named), anchors a sequence for relations between
    positions, sequences a group for losses over several, and whether a router mixes teacher layers."""

    pairs: tuple[Annotated[str, AfterValidator(_is_pair)], ...] = ()
    anchors: int = Field(default=64, ge=2, le=4096)
    group: int = Field(default=4, ge=1, le=4096)
    router: bool = False


class PositionSelection(Record):
    """Of the positions of a sequence, the share with the lowest or highest statistic; the term is 0 elsewhere."""

    term: LossTerm
    by: Statistic
    keep: KeptEnd
    share: Share


class LossSettings(Record):
    """What is minimized: alpha x CE + (1 - alpha) x a logit loss at a temperature, and what `weights` adds.

    `allow_coarse` permits a temperature at which the cache's exact ids hold under a fifth of the teacher's mass.
    `wsd` starts with CE alone, is at alpha after 2 % of the steps, and at `alpha_end` when the rate has decayed.
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
    def _one_selection_a_term(self) -> "LossSettings":
        if len({one.term for one in self.select}) != len(self.select):
            raise ValueError("a term has one selection of positions at most")
        return self


class Phase(Record):
    """A stretch of the run up to a share of its steps; what it leaves out is as `losses` and `run` say."""

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
    """Muon for matrices and AdamW for the rest, or AdamW for everything; None: chosen by the kind and size of student.

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
    """The rate over optimizer steps: up during `warmup`, then as `kind` says, down to `floor` of its height.

    `wsd` holds, and falls during `decay`, a share of all steps as `warmup` is.
    """

    kind: RateSchedule = "cosine"
    warmup: float = Field(default=0.1, ge=0, lt=1)
    decay: Share = 0.2
    floor: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _fits(self) -> "ScheduleSettings":
        if self.kind == "wsd" and self.warmup + self.decay > 1:
            raise ValueError("warmup and decay take more than all steps")
        return self


class RunSettings(Record):
    """How much is learnt, in what portions and order: `epochs` over the cache, one unless `max_steps` says."""

    epochs: float | None = Field(default=None, gt=0, le=1e6)
    max_steps: Count | None = None
    batch_size: int = Field(default=8, ge=1, le=1 << 16)
    accumulate: int = Field(default=1, ge=1, le=1 << 16)
    order: OrderName = "shuffled"
    phases: tuple[Phase, ...] = Field(default=(), max_length=64)

    @model_validator(mode="after")
    def _in_order(self) -> "RunSettings":
        ends = [phase.until for phase in self.phases]
        if ends != sorted(set(ends)):
            raise ValueError("phases end one after the other, each at a later share of the run")
        if ends and ends[-1] != 1:
            raise ValueError("the last phase ends at 1")
        return self


class EvaluationSettings(Record):
    """When the student is held against the validation split: `every` so many steps (a tenth of the run unless said,
    and at the end), over at most `limit` of its sequences; `metric` chooses the best: the loss, or cross-entropy where
    the loss means another thing at another step."""

    every: Count | None = None
    limit: Count | None = 256
    metric: BestMetric | None = None


class CheckpointSettings(Record):
    """Checkpoints: `every` so many steps (a tenth of the run unless said, and at the end), the newest `keep` and the
    best kept; `final` is what OUT/final is made of."""

    every: Count | None = None
    keep: int = Field(default=2, ge=1, le=1000)
    final: FinalStudent = "last"


class GuardSettings(Record):
    """What is done about steps that go wrong; what is None is as the preset says.

    A step is skipped when its gradient norm is over `sigma` deviations of the last `window`, over `median_factor` times
    their median, or over `skip_gradient_norm`; after `patience` skips in a row the last good snapshot comes back at
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
    """How this machine goes about it; `fp16-pure` trains weights of 16 bits as they are, without masters or scaling.

    `portion` is how many sequences of a batch are read at once: a GPU takes all, a CPU as many as have 1,024 tokens,
    which costs no time there and less memory. The loss is that of the whole step either way.
    """

    device: Device = "auto"
    precision: PrecisionSetting = "auto"
    threads: Threads | Literal["auto"] = "auto"
    portion: int | None = Field(default=None, ge=1, le=1 << 16)
    ahead: int = Field(default=4, ge=1, le=1024)


class TrainSettings(Record):
    """The whole of it."""

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
    def _each_tracker_once(self) -> "TrainSettings":
        if len(set(self.report_to)) != len(self.report_to):
            raise ValueError("report_to names a tracker twice")
        return self


class TrainOptions(Record):
    """What one call of the command does of it."""

    resume_from: Name | None = None
    dry_run: bool = False
    overwrite: bool = False
