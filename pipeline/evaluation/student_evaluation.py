"""A student loaded and measured on a split of a cache and on tasks.

In: a request whose paths were checked, the open cache. Out: an `EvalReport`.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from kdpipe.cache.durable.lock import locked
from kdpipe.cache.reader import Cache
from kdpipe.cache.verify.first_use import check_before_use
from kdpipe.pipeline.batches.prefetch import loading_threads
from kdpipe.pipeline.evaluation import humaneval
from kdpipe.pipeline.evaluation.eval_request import EvalRequest
from kdpipe.pipeline.evaluation.measure import Evaluator
from kdpipe.pipeline.evaluation.stored import is_run, save_tasks
from kdpipe.pipeline.evaluation.tasks import run_tasks
from kdpipe.pipeline.generation.text_generator import TextGenerator
from kdpipe.pipeline.losses.dense_chunk import teacher_head
from kdpipe.pipeline.models import devices
from kdpipe.pipeline.models.precision import choose_precision
from kdpipe.pipeline.students import lora
from kdpipe.pipeline.students.cache_tokenizer import CacheTokenizer, read_cache_tokenizer
from kdpipe.pipeline.students.compatibility import check_compatibility
from kdpipe.pipeline.students.load_student import description_of, load_student
from kdpipe.pipeline.students.resolve import resolve_student
from kdpipe.pipeline.students.student import Student
from kdpipe.schemas.errors import ConfigError, KdpipeError
from kdpipe.schemas.progress import Progress, Task, running
from kdpipe.schemas.train_report import EvalReport, EvalSettings, Evaluation, TaskResults
from kdpipe.schemas.train_settings import StudentSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredStudent:
    """A loaded student and its evaluation."""

    student: Student
    tokenizer: CacheTokenizer
    evaluation: Evaluation
    settings: EvalSettings


def evaluate_student(
    request: EvalRequest, cache: Cache, folder: str, settings: StudentSettings, progress: Progress
) -> EvalReport:
    """Evaluate the student in a folder; `settings` name the weights to load, its own or its adapter's base."""
    measured = load_and_measure(request, cache, folder, settings, progress)
    evaluation = measured.evaluation
    tasks, task_notes = _tasks(request, measured.student, measured.tokenizer, progress)
    _store(request, tasks, progress)
    return EvalReport(
        **evaluation.model_dump(include=set(EvalReport.model_fields) - {"by_entropy"}),
        by_entropy=evaluation.by_entropy,
        tasks=tasks,
        settings=measured.settings,
        notes=(*_notes(cache, evaluation), *task_notes),
    )


def load_and_measure(
    request: EvalRequest, cache: Cache, folder: str, settings: StudentSettings, progress: Progress
) -> MeasuredStudent:
    """The same without tasks."""
    tokenizer = read_cache_tokenizer(cache)
    resolved = resolve_student(settings, tokenizer.ids)
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
    evaluation = evaluator.measure(student, precision, progress=progress)
    return MeasuredStudent(
        student=student,
        tokenizer=tokenizer,
        evaluation=evaluation,
        settings=EvalSettings(
            cache=cache.url,
            cache_id=cache.cache_id,
            split=request.split,
            student=request.student,
            sequences=evaluator.n_sequences,
            documents=len(evaluation.by_document.numbers),
            limit=request.limit,
            device=str(device),
            precision=precision.name,
        ),
    )


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
    if library_tasks := request.library_tasks:
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
