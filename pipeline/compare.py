"""`compare`: compare runs and models by settings, metrics and differences with intervals.

In: run folders, whose stored evaluations are read; model folders, which are evaluated on the cache of the first run;
the teacher, whose metrics are in the cache. Out: a `CompareReport` with differences to the first. Losses of different
objectives have no difference. torch is imported only to evaluate models.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kdpipe.cache.opening import open_cache
from kdpipe.cache.stores.retries import RETRY_SECONDS, RetryPolicy
from kdpipe.pipeline.evaluate import EvalRequest, measure_student
from kdpipe.pipeline.evaluation.spread import differences, same_positions
from kdpipe.pipeline.evaluation.stored import is_model, is_run, load_evaluation, load_settings, load_tasks
from kdpipe.pipeline.evaluation.teacher_metrics import teacher_metrics
from kdpipe.schemas.choices import ComparedKind
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.progress import Progress, SilentProgress
from kdpipe.schemas.train_report import ComparedRun, CompareReport, Difference, Evaluation, TaskResults

# Settings without influence on results.
LOCATIONS = ("out",)
# Below this many documents their variance is unreliable (docs/experiments.md#intervals-of-compare).
FEW_DOCUMENTS = 20
# Settings that determine what `loss` measures, and at which step.
OBJECTIVE = ("losses.", "run.phases")
PERMITS = "losses.allow_coarse"
CHANGES_BY_STEP = ("schedule.", "run.max_steps", "run.epochs")
METRICS = ("loss", "loss_shifted", "cross_entropy", "perplexity", "kl_teacher", "top1_agreement", "ece")
LOSSES = ("loss", "loss_shifted")
# Metrics that improve upward.
RISING = ("top1_agreement",)
TEACHER: Final = "teacher"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareRequest:
    """`names` are run folders and model folders; models and the teacher use `cache`, by default the first run's."""

    names: Sequence[str]
    teacher: bool = False
    cache: str | None = None
    device: str = "auto"
    trust_remote_code: bool = False
    retry_for: float = RETRY_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """What is compared; only runs have settings, and a model's evaluation has no loss."""

    name: str
    kind: ComparedKind = "run"
    settings: dict[str, Any] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    numbers: dict[str, float | None] = field(default_factory=dict)
    tasks: TaskResults = field(default_factory=TaskResults)

    @property
    def objective(self) -> dict[str, str] | None:
        """The settings that determine the loss; if it changes by step, also the schedule and the step."""
        if self.kind != "run" or self.evaluation is None:
            return None
        names: tuple[str, ...] = OBJECTIVE
        settings, evaluation = self.settings, self.evaluation
        changes = bool(settings.get("run.phases")) or settings.get("losses.alpha_schedule", "constant") != "constant"
        names += CHANGES_BY_STEP if changes else ()
        selected = {name: value for name, value in settings.items() if name.startswith(names) and name != PERMITS}
        objective = {name: _format(value) for name, value in selected.items()} | {"loss": evaluation.loss_name}
        return objective | ({"step": str(evaluation.step)} if changes else {})


def compare(request: CompareRequest, progress: Progress | None = None) -> CompareReport:
    if len(request.names) + request.teacher < 2:
        raise ConfigError("compare needs at least two runs", hint="give two or more run or model folders")
    candidates = _candidates(request, progress or SilentProgress())
    first = candidates[0]
    reference = next((c.objective for c in candidates if c.objective is not None), None)
    settings = [candidate.settings for candidate in candidates if candidate.kind == "run"]
    differing = _differing(settings)
    best = _best(candidates, reference)
    return CompareReport(
        runs=tuple(
            ComparedRun(
                run=candidate.name,
                kind=candidate.kind,
                best=best[number],
                settings={name: _format(candidate.settings.get(name)) for name in differing},
                step=None if candidate.evaluation is None else candidate.evaluation.step,
                documents=None if candidate.evaluation is None else len(candidate.evaluation.by_document.numbers),
                positions=None if candidate.evaluation is None else candidate.evaluation.positions,
                numbers=candidate.numbers,
                tasks=_task_numbers(candidate.tasks),
                same_objective=None if candidate.objective is None else candidate.objective == reference,
                differences=_differences(first, candidate) if number else {},
            )
            for number, candidate in enumerate(candidates)
        ),
        notes=(*_notes(candidates), *_loss_notes(candidates), *_task_notes([c.tasks for c in candidates])),
    )


def _candidates(request: CompareRequest, progress: Progress) -> list[_Candidate]:
    folders = {name: Path(name).expanduser() for name in request.names}
    models = {name for name, folder in folders.items() if not is_run(folder) and is_model(folder)}
    runs = {name: _run(folder) for name, folder in folders.items() if name not in models}
    first_run = next(iter(runs.values()), None)
    cache = request.cache or (None if first_run is None else first_run.settings.get("cache.path"))
    if cache is None and (models or request.teacher):
        raise ConfigError("no cache to compare on", hint="give --from-cache CACHE, or the folder of a run")
    limit = None if first_run is None else first_run.settings.get("evaluation.limit")
    measured = {name: _model(name, str(cache), limit, request, progress) for name in request.names if name in models}
    candidates = [runs.get(name) or measured[name] for name in request.names]
    return candidates + ([_teacher(str(cache), limit, request, progress)] if request.teacher else [])


def _run(folder: Path) -> _Candidate:
    if folder.is_dir() and not is_run(folder):
        raise ConfigError(
            f"{folder} is not a run or a model: it has neither config.yaml nor config.json",
            hint="give the --out directory of kdpipe train, or a model folder",
        )
    settings, evaluation = load_settings(folder), load_evaluation(folder)
    numbers = {} if evaluation is None else _numbers(evaluation)
    return _Candidate(
        name=str(folder), settings=settings, evaluation=evaluation, numbers=numbers, tasks=load_tasks(folder)
    )


def _model(name: str, cache: str, limit: int | None, request: CompareRequest, progress: Progress) -> _Candidate:
    student = EvalRequest(
        cache=cache,
        student=name,
        limit=limit,
        device=request.device,
        trust_remote_code=request.trust_remote_code,
        retry_for=request.retry_for,
    )
    evaluation = measure_student(student, progress)
    numbers = {key: value for key, value in _numbers(evaluation).items() if key not in LOSSES}
    return _Candidate(name=name, kind="model", evaluation=evaluation, numbers=numbers)


def _teacher(url: str, limit: int | None, request: CompareRequest, progress: Progress) -> _Candidate:
    retry_policy = RetryPolicy(budget=request.retry_for, report=progress.message)
    metrics = teacher_metrics(open_cache(url, "validation", retry_policy=retry_policy), limit, progress)
    return _Candidate(name=TEACHER, kind="teacher", evaluation=metrics.evaluation, numbers=metrics.numbers)


def _best(candidates: Sequence[_Candidate], reference: dict[str, str] | None) -> list[tuple[str, ...]]:
    """For each candidate the metrics in which no other student on the same positions is better."""
    students = [c for c in candidates if c.kind != "teacher" and c.evaluation is not None]
    best: dict[int, list[str]] = {id(candidate): [] for candidate in candidates}
    for metric in METRICS:
        comparable = [
            candidate
            for candidate in students
            if candidate.numbers.get(metric) is not None
            and _is_comparable(students[0], candidate, metric)
            and (metric not in LOSSES or candidate.objective == reference)
        ]
        values = [candidate.numbers[metric] or 0.0 for candidate in comparable]
        if len({*values}) > 1:
            target = max(values) if metric in RISING else min(values)
            for candidate, value in zip(comparable, values, strict=True):
                if value == target:
                    best[id(candidate)].append(metric)
    return [tuple(best[id(candidate)]) for candidate in candidates]


def _is_comparable(first: _Candidate, other: _Candidate, metric: str) -> bool:
    """Whether a metric means the same for both."""
    one, two = first.evaluation, other.evaluation
    if one is None or two is None or not same_positions(one, two):
        return False
    if metric in LOSSES:
        return first.objective == other.objective and first.objective is not None
    return metric != "kl_teacher" or one.kl_teacher_estimate == two.kl_teacher_estimate


def _differences(first: _Candidate, other: _Candidate) -> dict[str, Difference]:
    """Differences of metrics that mean the same in both."""
    one, two = first.evaluation, other.evaluation
    if one is None or two is None:
        return {}
    shared = {name for name in first.numbers if name in other.numbers and _is_comparable(first, other, name)}
    metrics = {name: value for name, value in differences(one, two).items() if name in shared}
    if one.loss_name in shared and one.loss is not None and two.loss is not None:
        # Losses are not stored by document: no interval.
        metrics = {one.loss_name: Difference(value=two.loss - one.loss, spread=None), **metrics}
    return metrics


def _loss_notes(candidates: Sequence[_Candidate]) -> Iterator[str]:
    """Runs whose loss is of another objective than the first run's."""
    runs = [(candidate.name, candidate.objective) for candidate in candidates if candidate.objective is not None]
    for name, objective in runs[1:]:
        first, reference = runs[0]
        assert objective is not None and reference is not None
        if objective != reference:
            names = [key for key in _differing([reference, objective]) if key != "loss"]
            yield (
                f"no difference of losses: {name} and {first} have different objectives "
                f"({', '.join(names) or 'loss_shifted'}); compare CE, KL to the teacher and agreement"
            )


def _differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Names of settings that differ between runs."""
    names = dict.fromkeys(name for own in settings for name in own if name not in LOCATIONS)
    return [name for name in names if len({_format(own.get(name)) for own in settings}) > 1]


def _numbers(evaluation: Evaluation) -> dict[str, float | None]:
    """The metrics of an evaluation; a shifted loss has its own name."""
    summary = evaluation.summary
    return {name: value for name in METRICS if isinstance(value := summary.get(name), float | None) and name in summary}


def _task_numbers(results: TaskResults) -> dict[str, float]:
    """Metrics by task and name, without standard errors and counts."""
    return {
        f"{task} {name}": value
        for task, metrics in results.metrics.items()
        for name, value in metrics.items()
        if not name.endswith("_stderr") and name != "problems"
    }


def _task_notes(results: Sequence[TaskResults]) -> Iterator[str]:
    """Tasks that runs did with different limits."""
    for task in dict.fromkeys(task for one in results for task in one.limits):
        limits = {one.limits[task] for one in results if task in one.limits}
        if len(limits) > 1:
            yield f"results of {task} are not comparable: eval had different values of --limit"


def _format(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "-" if value is None or value == [] else json.dumps(value, ensure_ascii=False)


def _notes(candidates: Sequence[_Candidate]) -> Iterator[str]:
    for candidate in candidates:
        if candidate.evaluation is None:
            yield f"{candidate.name} has no evaluation: it is unfinished, or its cache has no validation split"
    first = candidates[0]
    if any(candidate.kind == "teacher" for candidate in candidates):
        yield "the teacher's numbers are those of the cache, rounded as stored; the best values are of students"
    if first.evaluation is None:
        yield "no differences: the first run has no evaluation"
        return
    others = [(other, other.evaluation) for other in candidates[1:] if other.evaluation is not None]
    for other, evaluation in others:
        if not same_positions(first.evaluation, evaluation):
            yield f"no differences for {other.name}: it was evaluated on other positions than {first.name}"
        elif other.kind != "teacher" and not _is_comparable(first, other, "kl_teacher"):
            yield f"no difference of KL to the teacher: {other.name} and {first.name} have different kinds of estimates"
    if any(same_positions(first.evaluation, evaluation) for _, evaluation in others):
        yield from _interval_notes(len(first.evaluation.by_document.numbers))


def _interval_notes(n_documents: int) -> Iterator[str]:
    """What the intervals are based on and exclude."""
    if n_documents < FEW_DOCUMENTS:
        yield (
            f"only {n_documents} evaluated document{'' if n_documents == 1 else 's'}: intervals are unreliable; "
            f"evaluate on {FEW_DOCUMENTS} or more"
        )
    yield "intervals cover these students only: seeds of one recipe often differ by more, so compare several seeds"
