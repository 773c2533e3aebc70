"""`kdpipe eval`: a student on a split of a cache, on HumanEval, and on lm-eval tasks.

In: an `EvalRequest`. Out: an `EvalReport`. No teacher is loaded: its predictions are in the cache.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from kdpipe.cache.durable.lock import locked
from kdpipe.cache.opening import open_cache
from kdpipe.cache.reader import Cache
from kdpipe.cache.stores.retries import RETRY_SECONDS, RetryPolicy
from kdpipe.cache.verify.first_use import check_before_use
from kdpipe.pipeline.batches.prefetch import loading_threads
from kdpipe.pipeline.evaluation import humaneval
from kdpipe.pipeline.evaluation.measure import Evaluator
from kdpipe.pipeline.evaluation.sandbox import UNSAFE
from kdpipe.pipeline.evaluation.stored import base_model_of, is_run, save_tasks, student_folder
from kdpipe.pipeline.evaluation.tasks import check_tasks, run_tasks
from kdpipe.pipeline.generation.text_generator import TextGenerator
from kdpipe.pipeline.losses.dense_chunk import teacher_head
from kdpipe.pipeline.models import devices
from kdpipe.pipeline.models.precision import choose_precision
from kdpipe.pipeline.students import lora
from kdpipe.pipeline.students.cache_tokenizer import CacheTokenizer, read_cache_tokenizer
from kdpipe.pipeline.students.compatibility import check_compatibility
from kdpipe.pipeline.students.load_student import description_of, load_student
from kdpipe.pipeline.students.resolve import ResolvedStudent, resolve_student
from kdpipe.pipeline.students.student import Student
from kdpipe.schemas.choices import SplitName, VerifyWhen
from kdpipe.schemas.errors import ConfigError, KdpipeError
from kdpipe.schemas.progress import Progress, Task, running
from kdpipe.schemas.train_report import EvalReport, EvalSettings, Evaluation, TaskResults
from kdpipe.schemas.train_settings import StudentSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRequest:
    """`student` is a model folder, a Hub id, or the folder of a run, for its final/."""

    cache: str
    student: str
    revision: str | None = None
    trust_remote_code: bool = False
    split: SplitName = "validation"
    limit: int | None = None
    tasks: tuple[str, ...] = ()
    unsafe_no_sandbox: bool = False
    allow_partial: bool = False
    device: str = "auto"
    batch_size: int = 8
    verify: VerifyWhen | None = None
    retry_for: float = RETRY_SECONDS


def evaluate(request: EvalRequest, progress: Progress) -> EvalReport:
    _check_tasks(request)
    retry_policy = RetryPolicy(budget=request.retry_for, report=progress.message)
    cache = open_cache(request.cache, request.split, allow_partial=request.allow_partial, retry_policy=retry_policy)
    folder = student_folder(request.student)
    settings = _settings(request, folder)
    tokenizer = read_cache_tokenizer(cache)
    resolved = _pretrained(resolve_student(settings, tokenizer.ids))
    compatibility = check_compatibility(resolved, settings, tokenizer, cache.manifest)
    check_before_use(request.cache, request.verify, progress)
    device = devices.choose_one(request.device)
    precision = choose_precision("auto", device)
    torch.set_num_threads(devices.n_threads(None))
    evaluator = Evaluator(
        cache,
        teacher_head(cache),
        batch_size=request.batch_size,
        limit=request.limit,
        threads=loading_threads(devices.n_threads(None)),
    )
    with running(progress, Task(name="load student")):
        student = load_student(resolved, settings, precision.name, device, seed=0)
        if settings.name != folder:
            student = Student(lora.merged(Path(folder), student.model), resolved.shape, resolved.ids.count)
    for note in (description_of(student), *compatibility.notes, *student.notes):
        progress.message(note)
    measured = evaluator.measure(student, precision, progress=progress)
    tasks, task_notes = _tasks(request, student, tokenizer, progress)
    _store(request, tasks, progress)
    return EvalReport(
        **measured.model_dump(include=set(EvalReport.model_fields) - {"by_entropy"}),
        by_entropy=measured.by_entropy,
        tasks=tasks,
        settings=EvalSettings(
            cache=cache.url,
            cache_id=cache.cache_id,
            split=request.split,
            student=request.student,
            sequences=evaluator.n_sequences,
            documents=len(measured.by_document.numbers),
            limit=request.limit,
            device=str(device),
            precision=precision.name,
        ),
        notes=(*_notes(cache, measured), *task_notes),
    )


def _settings(request: EvalRequest, folder: str) -> StudentSettings:
    """Settings of the weights to load: the student's own, or the base model of its adapter at its revision."""
    base = base_model_of(folder)
    if base.name != folder and request.revision is not None:
        raise ConfigError(
            f"{request.student} is an adapter, which records the revision of its base model",
            hint="remove --revision",
        )
    return StudentSettings(
        name=base.name, revision=request.revision or base.revision, trust_remote_code=request.trust_remote_code
    )


def _pretrained(student: ResolvedStudent) -> ResolvedStudent:
    if student.is_fresh:
        raise ConfigError(
            f"student {student.name} is randomly initialized: there is nothing to evaluate",
            hint="give a model folder, a Hub id, or the folder of a run",
        )
    return student


def _check_tasks(request: EvalRequest) -> None:
    """Refuse tasks that cannot be run, before anything is loaded."""
    if humaneval.NAME in request.tasks:
        humaneval.check_humaneval(sandboxed=not request.unsafe_no_sandbox)
    elif request.unsafe_no_sandbox:
        raise ConfigError(f"{UNSAFE} is for --tasks {humaneval.NAME}", hint=f"remove {UNSAFE}")
    if library_tasks := _library_tasks(request):
        check_tasks(library_tasks)


def _library_tasks(request: EvalRequest) -> list[str]:
    return [task for task in request.tasks if task != humaneval.NAME]


def _tasks(
    request: EvalRequest, student: Student, tokenizer: CacheTokenizer, progress: Progress
) -> tuple[dict[str, dict[str, float]], tuple[str, ...]]:
    """The metrics of each task, and notes on them."""
    if not request.tasks:
        return {}, ()
    if tokenizer.loaded is None:
        raise ConfigError(f"{request.cache} has no tokenizer, which tasks need", hint="remove --tasks")
    metrics: dict[str, dict[str, float]] = {}
    notes: tuple[str, ...] = ()
    fast = tokenizer.loaded.fast
    if humaneval.NAME in request.tasks:
        student.model.eval()
        result = humaneval.run_humaneval(
            TextGenerator(student.model, fast, student.shape.max_positions),
            humaneval.load_problems(humaneval.problems_file(), request.limit),
            progress,
            batch_size=request.batch_size,
            sandboxed=not request.unsafe_no_sandbox,
        )
        metrics[humaneval.NAME], notes = result.metrics, result.notes
    if library_tasks := _library_tasks(request):
        metrics |= run_tasks(student.model, fast, library_tasks, limit=request.limit, batch_size=request.batch_size)
    return metrics, notes


def _store(request: EvalRequest, tasks: dict[str, dict[str, float]], progress: Progress) -> None:
    """Store the results of tasks in the run, for `compare`."""
    run = Path(request.student).expanduser()
    if not tasks or not is_run(run):
        return
    try:
        with locked(run, progress.message):
            save_tasks(run, TaskResults(metrics=tasks, limits=dict.fromkeys(tasks, request.limit)))
    except KdpipeError as error:
        progress.warning(f"compare will not show these results of tasks: {error.message}")


def _notes(cache: Cache, measured: Evaluation) -> list[str]:
    """Caveats of the numbers."""
    notes = []
    missing = cache.manifest.plan.n_parts - len(cache.split(None).parts)
    if missing:
        notes.append(f"the cache is unfinished: {missing:,} of {cache.manifest.plan.n_parts:,} parts are missing")
    if not cache.manifest.targets.keep.has_teacher:
        notes.append("the cache has no targets: there are no comparisons with the teacher")
    elif measured.kl_teacher is None:
        notes.append("KL to the teacher is unavailable: the cache does not record how much mass its targets leave out")
    if measured.kl_teacher_estimate == "lower_bound":
        notes.append("KL to the teacher is a lower bound: all ids that are not exact count as one bin")
    return notes
