"""`Run`: everything about a training run that is settled before weights are loaded.

In: settings. Out: the cache, the resolved student, the step plan and settings without open defaults, or a refusal:
what is cheap to check is checked before weights are loaded.
"""

import json
from dataclasses import dataclass

import torch

from kdpipe.cache.reader import Cache
from kdpipe.pipeline.losses.exactness import SHIFTED, label
from kdpipe.pipeline.losses.terms import LOGIT_NAMES, ActiveTerms, TermName
from kdpipe.pipeline.models import devices
from kdpipe.pipeline.models.folders import local_folder, weights_sha256
from kdpipe.pipeline.models.precision import Precision, choose_precision
from kdpipe.pipeline.students.cache_tokenizer import read_cache_tokenizer
from kdpipe.pipeline.students.compatibility import Compatibility, check_compatibility
from kdpipe.pipeline.students.resolve import ResolvedStudent, resolve_student
from kdpipe.pipeline.tokenizers.tokenizer import LoadedTokenizer
from kdpipe.pipeline.training import run_folder
from kdpipe.pipeline.training.coarse_targets import check_masses
from kdpipe.pipeline.training.curriculum import Curriculum
from kdpipe.pipeline.training.guard import GuardValues, resolve
from kdpipe.pipeline.training.optimizer_defaults import StudentKind, fill_defaults, rates_reason, reason
from kdpipe.pipeline.training.run_inputs import RunInputs, open_inputs
from kdpipe.pipeline.training.schedules import StepPlan
from kdpipe.schemas.checkpoint import Best, RunRecord
from kdpipe.schemas.choices import BestMetric, LossName
from kdpipe.schemas.progress import Progress, Task, running
from kdpipe.schemas.strict_json import canonical, sha256_hex
from kdpipe.schemas.train_report import loss_name
from kdpipe.schemas.train_rules import compares_groups
from kdpipe.schemas.train_settings import TrainSettings

# Tokens of a micro-batch on a CPU: a step of 8 x 512 takes as long in micro-batches, and 0.37 of the memory in quarters
# (benchmarks/stage_two.py step --portion 2).
CPU_TOKENS = 1024
# Metrics that improve upward.
RISING: frozenset[BestMetric] = frozenset({"top1_agreement"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run before its first step; `record` identifies it. None: the cache has no validation split, or no tokenizer."""

    settings: TrainSettings
    record: RunRecord
    cache: Cache
    validation: Cache | None
    student: ResolvedStudent
    tokenizer: LoadedTokenizer | None
    compatibility: Compatibility
    plan: StepPlan
    curriculum: Curriculum
    guard: GuardValues
    device: torch.device
    precision: Precision
    micro_batch_size: int
    optimizer_reason: str
    rates_reason: str
    metric: BestMetric

    def term_name(self, term: TermName, temperature: float) -> str:
        """The name of a term in logs, with a suffix if its value is a bound."""
        if term not in LOGIT_NAMES:
            return term
        return label(term, self.cache.manifest.targets, temperature, self.curriculum.options)

    def loss_name(self, terms: ActiveTerms) -> LossName:
        """`loss_shifted` where the value of some term is shifted by a constant."""
        return loss_name(self.loss_is_shifted(terms))

    def loss_is_shifted(self, terms: ActiveTerms) -> bool:
        """Whether the value of some term is shifted by a constant."""
        return any(self.term_name(name, terms.temperature).endswith(SHIFTED) for name in terms.weights)

    def improves(self, value: float | None, best: Best | None) -> bool:
        """Whether a value of the metric is better than the best so far."""
        if value is None or best is None:
            return value is not None
        return value > best.value if self.metric in RISING else value < best.value


def plan_run(settings: TrainSettings, progress: Progress, inputs: RunInputs | None = None) -> Run:
    """Resolve the student and fill in defaults; what does not fit together is refused."""
    inputs = inputs or open_inputs(settings, progress)
    cache, curriculum, manifest = inputs.cache, inputs.curriculum, inputs.cache.manifest
    kept = read_cache_tokenizer(cache)
    student = resolve_student(settings.student, kept.ids)
    compatibility = check_compatibility(student, settings.student, kept, manifest)
    device = devices.choose_one(settings.machine.device)
    for text in compatibility.notes:
        progress.message(text)
    check_masses(cache, curriculum, settings.losses.allow_coarse, progress)
    with running(progress, Task(name="read student")):
        identity = student_identity(student)
    guard, precision = resolve(settings.guard, settings.optimizer), choose_precision(settings.machine.precision, device)
    metric: BestMetric = settings.evaluation.metric or ("loss" if curriculum.is_constant else "cross_entropy")
    kind, size = student_kind(settings, student), student.shape.n_parameters
    optimizer = fill_defaults(settings.optimizer, kind, size, factor=guard.lr_factor)
    optimizer = optimizer.model_copy(update={"clip": guard.clip})
    epochs = None if settings.run.max_steps is not None else {"epochs": settings.run.epochs or 1.0}
    settled = settings.model_copy(
        update={
            "optimizer": optimizer,
            "machine": settings.machine.model_copy(update={"precision": precision.name}),
            "run": settings.run.model_copy(update=epochs),
            "evaluation": settings.evaluation.model_copy(update={"metric": metric}),
        }
    )
    return Run(
        settings=settled,
        record=RunRecord(settings=settled, cache_id=run_folder.cache_identity(cache), student=identity),
        cache=cache,
        validation=inputs.validation,
        student=student,
        tokenizer=kept.loaded,
        compatibility=compatibility,
        plan=inputs.plan,
        curriculum=curriculum,
        guard=guard,
        device=device,
        precision=precision,
        micro_batch_size=micro_batch_size(settings, manifest.plan.sequence_length, device),
        optimizer_reason=reason(settings.optimizer, optimizer, kind, size),
        rates_reason=rates_reason(settings.optimizer, kind, size),
        metric=metric,
    )


def micro_batch_size(settings: TrainSettings, sequence_length: int, device: torch.device) -> int:
    """Sequences per micro-batch: at most a batch, and a multiple of the group size of losses that compare sequences."""
    size = settings.run.batch_size
    if settings.machine.portion is not None:
        return min(size, settings.machine.portion)
    if device.type != "cpu":
        return size
    group = settings.losses.hidden.group if compares_groups(settings) else 1
    return min(size, max(1, CPU_TOKENS // (sequence_length * group)) * group)


def student_identity(student: ResolvedStudent) -> str:
    """Identify a student by content: its weights, or the config for random weights."""
    folder = local_folder(student.name) if student.kind == "folder" else None
    if folder is not None:
        return f"weights {weights_sha256(folder)}"
    if student.kind == "hub":
        return f"{student.name} at {student.shape.revision}"
    # As transformers writes it: JSON has no infinities, which some configs hold.
    return f"config {sha256_hex(canonical(json.loads(student.shape.config.to_json_string())))}"


def student_kind(settings: TrainSettings, student: ResolvedStudent) -> StudentKind:
    """The kind of student that default optimizer and learning rates depend on."""
    return "fresh" if student.is_fresh else "lora" if settings.student.lora else "pretrained"
