"""The types of the keywords of `train` and `evaluate`: flags, and groups of settings as in a YAML file."""

from collections.abc import Sequence
from typing import Literal, TypedDict

from kdpipe.capture_keywords import PathLike
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

TeacherLossName = Literal["forward_kl", "skew_kl", "reverse_kl", "jsd", "total_variation", "renormalized"]


class CacheKeywords(TypedDict, total=False):
    path: PathLike | None
    allow_partial: bool
    pin: str | None
    dir: PathLike | None
    limit: int | str | None
    retry_for: float | str | None
    verify: VerifyWhen | None


class StudentKeywords(TypedDict, total=False):
    name: PathLike | None
    revision: str | None
    trust_remote_code: bool
    lora: bool
    lora_rank: int
    lora_alpha: float
    lora_dropout: float
    freeze_head: bool
    gradient_checkpointing: bool


class LossWeightsKeywords(TypedDict, total=False):
    ce: float | None
    forward_kl: float | None
    skew_kl: float | None
    reverse_kl: float | None
    jsd: float | None
    total_variation: float | None
    renormalized: float | None
    cosine: float | None
    correlation: float | None
    mse: float | None
    position_relations: float | None
    document_relations: float | None
    cka: float | None
    router_balance: float | None


class HiddenLossKeywords(TypedDict, total=False):
    pairs: Sequence[str]
    anchors: int
    group: int
    router: bool


class PositionSelectionKeywords(TypedDict, total=False):
    term: LossTerm
    by: Statistic
    keep: KeptEnd
    share: float


class LossKeywords(TypedDict, total=False):
    mode: LossMode
    alpha: float
    alpha_schedule: AlphaSchedule
    alpha_end: float
    logit: TeacherLossName
    temperature: float
    allow_coarse: bool
    tail_weight: float | None
    skew: float | None
    beta: float | None
    weights: LossWeightsKeywords
    hidden: HiddenLossKeywords
    select: Sequence[PositionSelectionKeywords]


class LearningRatesKeywords(TypedDict, total=False):
    matrices: float | None
    tables: float | None
    vectors: float | None
    maps: float | None
    router: float | None


class WeightDecaysKeywords(TypedDict, total=False):
    matrices: float | None
    tables: float | None
    vectors: float | None


class OptimizerKeywords(TypedDict, total=False):
    kind: OptimizerName | None
    lr: float | None
    rates: LearningRatesKeywords
    weight_decay: float
    decays: WeightDecaysKeywords
    beta1: float
    beta2: float
    momentum: float | None
    clip: float | None


class ScheduleKeywords(TypedDict, total=False):
    kind: RateSchedule
    warmup: float | str
    decay: float
    floor: float


class PhaseKeywords(TypedDict, total=False):
    until: float
    weights: LossWeightsKeywords
    alpha: float | None
    temperature: float | None
    order: OrderName | None


class RunKeywords(TypedDict, total=False):
    epochs: float | None
    max_steps: int | None
    batch_size: int
    accumulate: int
    order: OrderName
    phases: Sequence[PhaseKeywords]


class EvaluationKeywords(TypedDict, total=False):
    every: int | None
    limit: int | None
    metric: BestMetric | None
    samples: int
    sample_tokens: int


class CheckpointKeywords(TypedDict, total=False):
    every: int | None
    keep: int
    final: FinalStudent


class GuardKeywords(TypedDict, total=False):
    preset: GuardPreset
    sigma: float | None
    window: int | None
    median_factor: float | None
    skip_gradient_norm: float | None
    patience: int | None
    rollbacks: int | None
    rate_factor: float | None
    ce_only_steps: int
    snapshot_every: int | None
    clamp_logits: float | None
    clamp_loss: float | None


class MachineKeywords(TypedDict, total=False):
    device: str
    precision: PrecisionSetting
    threads: int | Literal["auto"]
    portion: int | None
    ahead: int


class TrainKeywords(TypedDict, total=False):
    accumulate: int | None
    allow_coarse: bool | None
    allow_partial: bool | None
    alpha: float | None
    batch_size: int | None
    cache_dir: PathLike | None
    cache_limit: int | str | None
    clip: float | None
    devices: str | None
    epochs: float | None
    eval_every: int | None
    evaluation: EvaluationKeywords | None
    gradient_checkpointing: bool | None
    guard: GuardPreset | GuardKeywords | None
    keep_checkpoints: int | None
    lora: bool | None
    loss: TeacherLossName | None
    losses: LossKeywords | None
    lr: float | None
    machine: MachineKeywords | None
    max_steps: int | None
    mode: LossMode | None
    optimizer: OptimizerName | OptimizerKeywords | None
    pin: str | None
    precision: PrecisionSetting | None
    report_to: Sequence[TrackerName] | str | None
    retry_for: float | str | None
    run: RunKeywords | None
    save_every: int | None
    saving: CheckpointKeywords | None
    schedule: RateSchedule | ScheduleKeywords | None
    seed: int | None
    temperature: float | None
    threads: int | Literal["auto"] | None
    verify: VerifyWhen | None
    warmup: float | str | None
    weight_decay: float | None
    resume_from: PathLike | None
    overwrite: bool


class EvalKeywords(TypedDict, total=False):
    revision: str | None
    trust_remote_code: bool
    tasks: Sequence[str]
    unsafe_no_sandbox: bool
    allow_partial: bool
    devices: str
    batch_size: int
    verify: VerifyWhen | None
    retry_for: float
