"""`compare`: compare runs by settings, metrics and differences with intervals.

In: folders of runs. Out: a `CompareReport` with differences to the first run, from the evaluations that the runs
stored. Losses of different objectives have no difference.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kdpipe.pipeline.evaluation.spread import differences, same_positions
from kdpipe.pipeline.evaluation.stored import load_evaluation, load_settings, load_tasks
from kdpipe.schemas.errors import ConfigError
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


def compare(folders: Sequence[str]) -> CompareReport:
    if len(folders) < 2:
        raise ConfigError("compare needs at least two runs", hint="give two or more run folders")
    runs = [Path(folder).expanduser() for folder in folders]
    settings = [load_settings(run) for run in runs]
    evaluations = [load_evaluation(run) for run in runs]
    tasks = [load_tasks(run) for run in runs]
    differing = _differing(settings)
    first = evaluations[0]
    objectives = [_objective(*run) for run in zip(settings, evaluations, strict=True)]
    return CompareReport(
        runs=tuple(
            ComparedRun(
                run=str(run),
                settings={name: _format(own.get(name)) for name in differing},
                step=None if evaluation is None else evaluation.step,
                documents=None if evaluation is None else len(evaluation.by_document.numbers),
                positions=None if evaluation is None else evaluation.positions,
                numbers={} if evaluation is None else _numbers(evaluation),
                tasks=_task_numbers(results),
                same_objective=None if evaluation is None or first is None else objective == objectives[0],
                differences=_differences(first, evaluation, objective == objectives[0])
                if number and first and evaluation
                else {},
            )
            for number, (run, own, evaluation, objective, results) in enumerate(
                zip(runs, settings, evaluations, objectives, tasks, strict=True)
            )
        ),
        notes=(*_notes(runs, evaluations), *_loss_notes(runs, evaluations, objectives), *_task_notes(tasks)),
    )


def _objective(settings: dict[str, Any], evaluation: Evaluation | None) -> dict[str, str]:
    """The settings that determine a loss; if it changes by step, also the schedule and the step."""
    names: tuple[str, ...] = OBJECTIVE
    changes = bool(settings.get("run.phases")) or settings.get("losses.alpha_schedule", "constant") != "constant"
    names += CHANGES_BY_STEP if changes else ()
    selected = {name: value for name, value in settings.items() if name.startswith(names) and name != PERMITS}
    objective = {name: _format(value) for name, value in selected.items()}
    if evaluation is not None:
        objective["loss"] = evaluation.loss_name
        objective |= {"step": str(evaluation.step)} if changes else {}
    return objective


def _differences(first: Evaluation, other: Evaluation, same_objective: bool) -> dict[str, Difference]:
    """Differences of metrics that mean the same in both runs."""
    comparable = differences(first, other)
    if first.kl_teacher_estimate != other.kl_teacher_estimate:
        comparable.pop("kl_teacher", None)
    if comparable and same_objective and first.loss is not None and other.loss is not None:
        # Losses are not stored by document: no interval.
        comparable = {first.loss_name: Difference(value=other.loss - first.loss, spread=None), **comparable}
    return comparable


def _loss_notes(
    runs: Sequence[Path], evaluations: Sequence[Evaluation | None], objectives: Sequence[dict[str, str]]
) -> Iterator[str]:
    """Runs whose loss is of another objective than the first run's."""
    if evaluations[0] is None:
        return
    for run, evaluation, objective in zip(runs[1:], evaluations[1:], objectives[1:], strict=True):
        names = [name for name in _differing([objectives[0], objective]) if name != "loss"]
        if evaluation is None or objective == objectives[0]:
            continue
        yield (
            f"no difference of losses: {run} and {runs[0]} have different objectives "
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


def _notes(runs: Sequence[Path], evaluations: Sequence[Evaluation | None]) -> Iterator[str]:
    for run, evaluation in zip(runs, evaluations, strict=True):
        if evaluation is None:
            yield f"{run} has no evaluation: it is unfinished, or its cache has no validation split"
    first = evaluations[0]
    if first is None:
        yield "no differences: the first run has no evaluation"
        return
    others = [(run, other) for run, other in zip(runs[1:], evaluations[1:], strict=True) if other is not None]
    for run, evaluation in others:
        if not same_positions(first, evaluation):
            yield f"no differences for {run}: it was evaluated on other positions than {runs[0]}"
        elif evaluation.kl_teacher_estimate != first.kl_teacher_estimate:
            yield f"no difference of KL to the teacher: {run} and {runs[0]} have different kinds of estimates"
    if any(same_positions(first, evaluation) for _, evaluation in others):
        yield from _interval_notes(len(first.by_document.numbers))


def _interval_notes(n_documents: int) -> Iterator[str]:
    """What the intervals are based on and exclude."""
    if n_documents < FEW_DOCUMENTS:
        yield (
            f"only {n_documents} evaluated document{'' if n_documents == 1 else 's'}: intervals are unreliable; "
            f"evaluate on {FEW_DOCUMENTS} or more"
        )
    yield "intervals cover these students only: seeds of one recipe often differ by more, so compare several seeds"
