"""`evaluate`: a student beside what a cache's teacher said, and at tasks.

In: what was asked. Out: an `EvalReport`. No teacher is loaded: what it said is in the cache.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from kdpipe.cache.opening import open_cache
from kdpipe.cache.reader import Cache
from kdpipe.cache.stores.retries import RETRY_SECONDS, RetryPolicy
from kdpipe.cache.verify.first_use import check_before_use
from kdpipe.pipeline.batches.prefetch import loading_threads
from kdpipe.pipeline.evaluation.measure import Evaluator
from kdpipe.pipeline.evaluation.stored import base_of, student_of
from kdpipe.pipeline.evaluation.tasks import check_tasks, run_tasks
from kdpipe.pipeline.models import devices
from kdpipe.pipeline.models.precision import choose_precision
from kdpipe.pipeline.students import lora
from kdpipe.pipeline.students.cache_tokenizer import CacheTokenizer, kept_tokenizer
from kdpipe.pipeline.students.compatibility import check_fit
from kdpipe.pipeline.students.load_student import described, load_student
from kdpipe.pipeline.students.resolve import ResolvedStudent, find_student
from kdpipe.pipeline.students.student import Student
from kdpipe.pipeline.training.cache_requirements import teacher_head
from kdpipe.pipeline.watch import EvalWatch
from kdpipe.schemas.choices import SplitName, VerifyWhen
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.train_report import EvalReport, EvalSettings, Evaluation
from kdpipe.schemas.train_settings import StudentSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRequest:
    """What is to be evaluated: `student` is a model folder, a hub id, or the folder of a run, for its final/."""

    cache: str
    student: str
    revision: str | None = None
    trust_remote_code: bool = False
    split: SplitName = "validation"
    limit: int | None = None
    tasks: tuple[str, ...] = ()
    allow_partial: bool = False
    device: str = "auto"
    batch_size: int = 8
    verify: VerifyWhen | None = None
    retry_for: float = RETRY_SECONDS


def evaluate(asked: EvalRequest, watch: EvalWatch) -> EvalReport:
    """Measure a student."""
    if asked.tasks:
        check_tasks(asked.tasks)
    retry_policy = RetryPolicy(budget=asked.retry_for, report=watch.say)
    cache = open_cache(asked.cache, asked.split, allow_partial=asked.allow_partial, retry_policy=retry_policy)
    folder = student_of(asked.student)
    settings = _settings(asked, folder)
    kept = kept_tokenizer(cache)
    found = _trained(find_student(settings, kept.ids))
    fit = check_fit(found, settings, kept, cache.manifest)
    check_before_use(asked.cache, asked.verify, watch)
    device = devices.choose(asked.device)[0]
    precision = choose_precision("auto", device)
    torch.set_num_threads(devices.n_threads(None))
    evaluator = Evaluator(
        cache,
        teacher_head(cache),
        batch_size=asked.batch_size,
        limit=asked.limit,
        threads=loading_threads(devices.n_threads(None)),
    )
    student = load_student(found, settings, precision.name, device, seed=0)
    if settings.name != folder:
        student = Student(lora.merged(Path(folder), student.model), found.shape, found.ids.count)
    for told in (described(student), *fit.notes, *student.notes):
        watch.say(told)
    measured = evaluator.measure(student, precision, measured=watch.measured)
    return EvalReport(
        **measured.model_dump(include=set(EvalReport.model_fields) - {"by_entropy"}),
        by_entropy=measured.by_entropy,
        tasks=_tasks(asked, student, kept),
        settings=EvalSettings(
            cache=cache.url,
            cache_id=cache.cache_id,
            split=asked.split,
            student=asked.student,
            sequences=evaluator.n_sequences,
            documents=len(measured.by_document.numbers),
            limit=asked.limit,
            device=str(device),
            precision=precision.name,
        ),
        notes=tuple(_notes(cache, measured)),
    )


def _settings(asked: EvalRequest, folder: str) -> StudentSettings:
    """Which weights are read: the student's own, or those that its adapter was trained beside, as they were then."""
    base = base_of(folder)
    if base.name != folder and asked.revision is not None:
        raise ConfigError(
            f"{asked.student} is an adapter, which says itself what it was trained beside",
            hint="leave --revision out",
        )
    return StudentSettings(
        name=base.name, revision=asked.revision or base.revision, trust_remote_code=asked.trust_remote_code
    )


def _trained(found: ResolvedStudent) -> ResolvedStudent:
    if found.is_fresh:
        raise ConfigError(
            f"the student {found.name} is a fresh one, it has learnt nothing that could be measured",
            hint="give a model folder, a hub id, or the folder of a run",
        )
    return found


def _tasks(asked: EvalRequest, student: Student, kept: CacheTokenizer) -> dict[str, dict[str, float]]:
    if not asked.tasks:
        return {}
    if kept.loaded is None:
        raise ConfigError(
            f"{asked.cache} keeps no tokenizer, which tasks need to read their texts", hint="leave --tasks out"
        )
    return run_tasks(student.model, kept.loaded.fast, asked.tasks, limit=asked.limit, batch_size=asked.batch_size)


def _notes(cache: Cache, measured: Evaluation) -> list[str]:
    """What a reader of the numbers should know."""
    found = []
    missing = cache.manifest.plan.n_parts - len(cache.split(None).parts)
    if missing:
        found.append(f"the cache is unfinished: {missing:,} of {cache.manifest.plan.n_parts:,} parts are missing")
    if cache.manifest.targets.keep.kind == "none":
        found.append("the cache keeps no targets: nothing is known of the teacher")
    elif measured.kl_teacher is None:
        found.append("what the cache leaves out of the teacher is unknown: there is no KL to it")
    if measured.kl_teacher_estimate == "lower_bound":
        found.append("KL to the teacher is a lower bound: all ids that were not kept exactly are one bin")
    return found
