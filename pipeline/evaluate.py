"""`kdpipe eval`: a student on a split of a cache, on HumanEval, and on lm-eval tasks.

In: an `EvalRequest`. Out: an `EvalReport`. No teacher is loaded: its predictions are in the cache. Paths are checked
before torch is imported.
"""

from kdpipe.cache.opening import open_cache
from kdpipe.cache.reader import Cache
from kdpipe.cache.stores.retries import RetryPolicy
from kdpipe.pipeline.evaluation import humaneval
from kdpipe.pipeline.evaluation.eval_request import EvalRequest as EvalRequest
from kdpipe.pipeline.evaluation.sandbox import UNSAFE
from kdpipe.pipeline.evaluation.stored import base_model_of, student_folder
from kdpipe.pipeline.evaluation.tasks import check_tasks
from kdpipe.pipeline.students.student_name import check_pretrained, check_vocabulary_file, hub_lookup
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.progress import Progress, Task, running
from kdpipe.schemas.train_report import EvalReport, Evaluation
from kdpipe.schemas.train_settings import StudentSettings


def evaluate(request: EvalRequest, progress: Progress) -> EvalReport:
    if humaneval.NAME in request.tasks:
        humaneval.check_humaneval(sandboxed=not request.unsafe_no_sandbox)
    elif request.unsafe_no_sandbox:
        raise ConfigError(f"{UNSAFE} is for --tasks {humaneval.NAME}", hint=f"remove {UNSAFE}")
    cache, folder, settings = _checked(request, progress)
    if library_tasks := request.library_tasks:
        check_tasks(library_tasks)
    progress.message(f"evaluating {request.student} on {request.cache}: {len(cache):,} {request.split} sequences")
    if (lookup := hub_lookup(settings.name or "")) is not None:
        progress.message(lookup)
    with running(progress, Task(name="load torch")):
        from kdpipe.pipeline.evaluation.student_evaluation import evaluate_student
    return evaluate_student(request, cache, folder, settings, progress)


def measure_student(request: EvalRequest, progress: Progress) -> Evaluation:
    """Evaluate a student without tasks."""
    cache, folder, settings = _checked(request, progress)
    with running(progress, Task(name="load torch")):
        from kdpipe.pipeline.evaluation.student_evaluation import load_and_measure
    return load_and_measure(request, cache, folder, settings, progress).evaluation


def _checked(request: EvalRequest, progress: Progress) -> tuple[Cache, str, StudentSettings]:
    """The open cache, the student's folder, and the settings of its weights."""
    retry_policy = RetryPolicy(budget=request.retry_for, report=progress.message)
    cache = open_cache(request.cache, request.split, allow_partial=request.allow_partial, retry_policy=retry_policy)
    folder = student_folder(request.student)
    settings = _settings(request, folder)
    check_pretrained(settings)
    check_vocabulary_file(settings, cache)
    return cache, folder, settings


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
