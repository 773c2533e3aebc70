"""Before the first step: cache and student found, held against each other, and put together.

In: settings. Out: a `PreparedRun`, or what cannot be, in two lines. What is cheap to refuse is refused before weights
are loaded.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from kdpipe.cache.reader import Cache
from kdpipe.pipeline.batches.batch_order import Ordering, ordering
from kdpipe.pipeline.batches.collate import BatchContents, check_wants
from kdpipe.pipeline.batches.run_cache import opened
from kdpipe.pipeline.losses.exactness import SHIFTED, label
from kdpipe.pipeline.losses.head_chunks import HeadLosses
from kdpipe.pipeline.losses.hidden.hidden_objective import HiddenObjective
from kdpipe.pipeline.losses.objective import Objective
from kdpipe.pipeline.losses.terms import HIDDEN_NAMES, LOGIT_NAMES, ActiveTerms, TermName
from kdpipe.pipeline.models import devices
from kdpipe.pipeline.models.folders import local_folder, weights_sha256
from kdpipe.pipeline.models.precision import Precision, choose_precision
from kdpipe.pipeline.students.cache_tokenizer import kept_tokenizer
from kdpipe.pipeline.students.compatibility import Compatibility, check_fit
from kdpipe.pipeline.students.load_student import described, load_student
from kdpipe.pipeline.students.parameter_roles import parameter_roles
from kdpipe.pipeline.students.resolve import ResolvedStudent, find_student
from kdpipe.pipeline.students.student import Student
from kdpipe.pipeline.training import cache_requirements as needs
from kdpipe.pipeline.training import guard as guarding
from kdpipe.pipeline.training import memorization, run_folder
from kdpipe.pipeline.training.coarse_targets import check_masses
from kdpipe.pipeline.training.curriculum import Curriculum
from kdpipe.pipeline.training.optimizer_defaults import StudentKind, reason, settle, shares
from kdpipe.pipeline.training.optimizers import Trainable, make_optimizer
from kdpipe.pipeline.training.schedules import StepPlan, make_plan
from kdpipe.pipeline.training.trackers import check_installed
from kdpipe.pipeline.training.train_state import TrainState
from kdpipe.pipeline.watch import TrainWatch
from kdpipe.schemas.checkpoint import RunRecord
from kdpipe.schemas.choices import BestMetric
from kdpipe.schemas.strict_json import canonical, sha256_hex
from kdpipe.schemas.train_rules import compares_groups
from kdpipe.schemas.train_settings import TrainSettings

# Tokens that a CPU reads at once: a step of 8 x 512 takes as long in portions, and 0.37 of the memory in quarters
# (benchmarks/stage_two.py step --portion 2).
CPU_TOKENS = 1024
OF_THE_TEACHER = ("teacher_entropy", "label_logprob")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInputs:
    """What is known before weights are loaded; `settings` are settled, `record` says which run this is."""

    settings: TrainSettings
    cache: Cache
    validation: Cache | None
    found: ResolvedStudent
    fit: Compatibility
    plan: StepPlan
    curriculum: Curriculum
    guard: guarding.GuardValues
    device: torch.device
    precision: Precision
    portion: int
    optimizer_reason: str

    @property
    def record(self) -> RunRecord:
        """Which run a folder belongs to."""
        return RunRecord(
            settings=self.settings,
            cache_id=run_folder.cache_identity(self.cache),
            student=identity(self.found),
        )

    @property
    def metric(self) -> BestMetric:
        """What the best student is chosen by."""
        metric = self.settings.evaluation.metric
        assert metric is not None, "settled when a run is looked at"
        return metric


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRun:
    """Everything that the loop needs."""

    prospect: RunInputs
    train_state: TrainState
    orders: Mapping[str, Ordering]
    wants: BatchContents

    @property
    def settings(self) -> TrainSettings:
        """As settled."""
        return self.prospect.settings

    @property
    def plan(self) -> StepPlan:
        """Steps, batches, warm-up."""
        return self.prospect.plan

    @property
    def curriculum(self) -> Curriculum:
        """What counts when."""
        return self.prospect.curriculum

    @property
    def guard(self) -> guarding.GuardValues:
        """What the guard goes by."""
        return self.prospect.guard

    def name_of(self, term: TermName, temperature: float) -> str:
        """What a term is called in logs: a bound is called one."""
        if term not in LOGIT_NAMES:
            return term
        options = self.prospect.curriculum.at(0).options
        return label(term, self.prospect.cache.manifest.targets, temperature, options)

    def loss_is_shifted(self, terms: ActiveTerms) -> bool:
        """Whether the total contains a term whose value is shifted."""
        return any(self.name_of(name, terms.temperature).endswith(SHIFTED) for name in terms.weights)


def look(settings: TrainSettings, watch: TrainWatch) -> RunInputs:
    """Open the cache, find the student, and refuse what does not fit."""
    check_installed(settings.report_to)
    cache = opened(settings.cache, watch, "train")
    plan = make_plan(settings, len(cache))
    curriculum = Curriculum(settings, plan, needs.default_tail_weight(cache.manifest.targets))
    needs.check_needs(settings.losses, curriculum, cache.manifest)
    validation = _validation(cache)
    needs.check_choice(settings, cache.manifest, validates=validation is not None)
    kept = kept_tokenizer(cache)
    found = find_student(settings.student, kept.ids)
    fit = check_fit(found, settings.student, kept, cache.manifest)
    device = devices.choose(settings.machine.device)[0]
    manifest = cache.manifest
    clamps = guarding.clamp_warnings(settings.guard, manifest.vocabulary_size)
    memorized = memorization.warnings(plan, curriculum, manifest.targets, cache.n_positions)
    for told in (*needs.warnings(settings, curriculum, manifest), *clamps, *memorized):
        watch.warn(told)
    for told in fit.notes:
        watch.say(told)
    check_masses(cache, curriculum, settings.losses.allow_coarse, watch)
    settled = _settled(settings, found, device, curriculum)
    kind, size = student_kind(settings, found), found.shape.n_parameters
    return RunInputs(
        settings=settled,
        cache=cache,
        validation=validation,
        found=found,
        fit=fit,
        plan=plan,
        curriculum=curriculum,
        guard=guarding.resolve(settings.guard, settings.optimizer),
        device=device,
        precision=choose_precision(settings.machine.precision, device),
        portion=portion(settings, manifest.plan.sequence_length, device),
        optimizer_reason=reason(settings.optimizer, settled.optimizer, kind, size),
    )


def portion(settings: TrainSettings, longest: int, device: torch.device) -> int:
    """Sequences that are read at once: never more than a batch has, and whole groups where losses compare these."""
    size = settings.run.batch_size
    if settings.machine.portion is not None:
        return min(size, settings.machine.portion)
    if device.type != "cpu":
        return size
    group = settings.losses.hidden.group if compares_groups(settings) else 1
    return min(size, max(1, CPU_TOKENS // (longest * group)) * group)


def identity(found: ResolvedStudent) -> str:
    """Which student this is, by content: its weights, or the config that fresh ones are drawn for."""
    folder = local_folder(found.name) if found.kind == "folder" else None
    if folder is not None:
        return f"weights {weights_sha256(folder)}"
    if found.kind == "hub":
        return f"{found.name} at {found.shape.revision}"
    # As transformers spells it: JSON has no infinities, which some configs hold.
    return f"config {sha256_hex(canonical(json.loads(found.shape.config.to_json_string())))}"


def prepare(prospect: RunInputs, watch: TrainWatch) -> PreparedRun:
    """Load the student and put everything together."""
    settings, device = prospect.settings, prospect.device
    threads = settings.machine.threads
    torch.set_num_threads(devices.n_threads(None if threads == "auto" else threads))
    student = load_student(prospect.found, settings.student, prospect.precision.name, device, settings.seed)
    for told in (described(student), *student.notes):
        watch.say(told)
    hidden = _hidden(prospect, student)
    wants = _wants(prospect, hidden)
    check_wants(prospect.cache, wants)
    student.model.train()
    losses = settings.losses
    options = prospect.curriculum.at(0).options
    head = HeadLosses(student.head, options, needs.teacher_head(prospect.cache))
    train_state = TrainState(
        student=student,
        model=nn.ModuleDict({"student": student.model, **({} if hidden is None else {"hidden": hidden})}),
        objective=Objective(head, hidden, losses.select),
        optimizer=make_optimizer(settings.optimizer, _trainable(student, hidden)),
        scaler=torch.amp.GradScaler(device.type) if prospect.precision.scaled else None,
        precision=prospect.precision,
        device=device,
    )
    watch.say(f"optimizer   {prospect.optimizer_reason}")
    watch.say(f"            {shares(train_state.optimizer)}")
    orders: dict[str, Ordering] = {
        name: ordering(prospect.cache, name, settings.seed) for name in prospect.curriculum.orders
    }
    # What dropout draws; a checkpoint that the run goes on from has the generators' states.
    torch.manual_seed(settings.seed)
    return PreparedRun(prospect=prospect, train_state=train_state, orders=orders, wants=wants)


def _settled(
    settings: TrainSettings, found: ResolvedStudent, device: torch.device, curriculum: Curriculum
) -> TrainSettings:
    """Settings with what was left to be found out."""
    values = guarding.resolve(settings.guard, settings.optimizer)
    kind, size = student_kind(settings, found), found.shape.n_parameters
    optimizer = settle(settings.optimizer, kind, size, factor=values.lr_factor)
    optimizer = optimizer.model_copy(update={"clip": values.clip})
    machine = settings.machine.model_copy(
        update={"precision": choose_precision(settings.machine.precision, device).name}
    )
    run = settings.run
    if run.max_steps is None:
        run = run.model_copy(update={"epochs": run.epochs or 1.0})
    metric = settings.evaluation.metric or ("loss" if curriculum.is_constant else "cross_entropy")
    evaluating = settings.evaluation.model_copy(update={"metric": metric})
    return settings.model_copy(
        update={"optimizer": optimizer, "machine": machine, "run": run, "evaluation": evaluating}
    )


def _validation(cache: Cache) -> Cache | None:
    """The validation split, unless the cache has none or it is empty."""
    if "validation" not in cache.split_names:
        return None
    validation = cache.split("validation")
    return validation if len(validation) and validation.n_positions else None


def _hidden(prospect: RunInputs, student: Student) -> HiddenObjective | None:
    terms = [name for name in HIDDEN_NAMES if name in prospect.curriculum.terms]
    losses = prospect.settings.losses
    if not terms and not losses.hidden.router:
        return None
    made = HiddenObjective(
        losses,
        terms,
        prospect.cache.manifest,
        student_widths=student.shape.widths,
        seed=prospect.settings.seed,
    )
    return made.to(prospect.device)


def _wants(prospect: RunInputs, hidden: HiddenObjective | None) -> BatchContents:
    """What is read of the cache: targets only where a loss needs them."""
    by_teacher = any(one.by in OF_THE_TEACHER for one in prospect.settings.losses.select)
    rows, pooled = ((), ()) if hidden is None else hidden.wants()
    logit = prospect.curriculum.terms & (set(LOGIT_NAMES) - {"ce"})
    return BatchContents(targets=bool(logit), statistics=by_teacher, hidden=tuple(rows), pooled=tuple(pooled))


def student_kind(settings: TrainSettings, found: ResolvedStudent) -> StudentKind:
    """What decides optimizer and learning rates."""
    return "fresh" if found.is_fresh else "lora" if settings.student.lora else "pretrained"


def _trainable(student: Student, hidden: HiddenObjective | None) -> Trainable:
    named = {} if hidden is None else dict(hidden.named_parameters())
    return Trainable(
        student=student.trainable(),
        roles=parameter_roles(student.model),
        maps={name: each for name, each in named.items() if not name.startswith("router.")},
        router={name: each for name, each in named.items() if name.startswith("router.")},
    )
