"""`compare`: runs beside each other: the settings that differ, their metrics, and differences with intervals.

In: folders of runs. Out: a `CompareReport`; differences are from the first run. Nothing is loaded or measured again:
every number comes from the evaluations that the runs stored. Losses of different objectives have no difference.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kdpipe.pipeline.evaluation.spread import differences, same_positions
from kdpipe.pipeline.evaluation.stored import load_evaluation, load_settings
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.train_report import ComparedRun, CompareReport, Difference, Evaluation

# Where a run lies is no difference between runs.
PLACES = ("out",)
# Below this many documents the variance between them is itself a guess (docs/experiments.md#intervals-of-compare).
FEW_DOCUMENTS = 20
# Settings that decide what `loss` measures, and those that decide at which step it measures what.
OBJECTIVE = ("losses.", "run.phases")
PERMITS = "losses.allow_coarse"
CHANGES_BY_STEP = ("schedule.", "run.max_steps", "run.epochs")
METRICS = ("loss", "loss_shifted", "cross_entropy", "perplexity", "kl_teacher", "top1_agreement", "ece")


def compare(folders: Sequence[str]) -> CompareReport:
    """Put runs beside each other."""
    if len(folders) < 2:
        raise ConfigError("one run cannot be compared", hint="give two folders of runs, or more")
    runs = [Path(folder).expanduser() for folder in folders]
    settings = [load_settings(run) for run in runs]
    evaluations = [load_evaluation(run) for run in runs]
    differing = _differing(settings)
    first, objectives = (
        evaluations[0],
        [_objective(own, found) for own, found in zip(settings, evaluations, strict=True)],
    )
    return CompareReport(
        runs=tuple(
            ComparedRun(
                run=str(run),
                settings={name: _shown(own.get(name)) for name in differing},
                step=None if evaluation is None else evaluation.step,
                documents=None if evaluation is None else len(evaluation.by_document.numbers),
                positions=None if evaluation is None else evaluation.positions,
                numbers={} if evaluation is None else _numbers(evaluation),
                same_objective=None if evaluation is None or first is None else objective == objectives[0],
                differences=_differences(first, evaluation, objective == objectives[0])
                if number and first and evaluation
                else {},
            )
            for number, (run, own, evaluation, objective) in enumerate(
                zip(runs, settings, evaluations, objectives, strict=True)
            )
        ),
        notes=(*_notes(runs, evaluations), *_about_losses(runs, evaluations, objectives)),
    )


def _objective(settings: dict[str, Any], evaluation: Evaluation | None) -> dict[str, str]:
    """What decides the loss of a run; one that changes by step also depends on the schedule and the step."""
    names: tuple[str, ...] = OBJECTIVE
    changes = bool(settings.get("run.phases")) or settings.get("losses.alpha_schedule", "constant") != "constant"
    names += CHANGES_BY_STEP if changes else ()
    named = {name: value for name, value in settings.items() if name.startswith(names) and name != PERMITS}
    found = {name: _shown(value) for name, value in named.items()}
    if evaluation is not None:
        found["loss"] = evaluation.loss_name
        found |= {"step": str(evaluation.step)} if changes else {}
    return found


def _differences(first: Evaluation, other: Evaluation, same_objective: bool) -> dict[str, Difference]:
    """Differences of the readings that mean the same in both runs."""
    found = differences(first, other)
    if first.kl_teacher_estimate != other.kl_teacher_estimate:
        found.pop("kl_teacher", None)
    if found and same_objective and first.loss is not None and other.loss is not None:
        # Losses are not kept by document, so that their difference has no interval.
        found = {first.loss_name: Difference(value=other.loss - first.loss, spread=None), **found}
    return found


def _about_losses(
    runs: Sequence[Path], evaluations: Sequence[Evaluation | None], objectives: Sequence[dict[str, str]]
) -> Iterator[str]:
    """Which losses are values of another objective than the first's, and by what."""
    if evaluations[0] is None:
        return
    for run, evaluation, objective in zip(runs[1:], evaluations[1:], objectives[1:], strict=True):
        names = [name for name in _differing([objectives[0], objective]) if name != "loss"]
        if evaluation is None or objective == objectives[0]:
            continue
        yield (
            f"the losses of {run} and {runs[0]} measure different objectives ({', '.join(names) or 'loss_shifted'}): "
            "no difference is shown; compare CE, KL to the teacher and agreement"
        )


def _differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the settings that are not the same in all runs."""
    names = dict.fromkeys(name for own in settings for name in own if name not in PLACES)
    return [name for name in names if len({_shown(own.get(name)) for own in settings}) > 1]


def _numbers(evaluation: Evaluation) -> dict[str, float | None]:
    """The metrics that an evaluation knows; a shifted loss has a name of its own and stands in a row of its own."""
    summary = evaluation.summary
    return {name: value for name in METRICS if isinstance(value := summary.get(name), float | None) and name in summary}


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "-" if value is None or value == [] else json.dumps(value, ensure_ascii=False)


def _notes(runs: Sequence[Path], evaluations: Sequence[Evaluation | None]) -> Iterator[str]:
    for run, evaluation in zip(runs, evaluations, strict=True):
        if evaluation is None:
            yield f"{run} has no evaluation: the run is unfinished, or its cache has no validation split"
    first = evaluations[0]
    if first is None:
        yield "the first run has no evaluation, so no differences are shown"
        return
    others = [(run, found) for run, found in zip(runs[1:], evaluations[1:], strict=True) if found is not None]
    for run, evaluation in others:
        if not same_positions(first, evaluation):
            yield f"{run} was evaluated on other positions than {runs[0]}: no differences are shown"
        elif evaluation.kl_teacher_estimate != first.kl_teacher_estimate:
            yield f"KL to the teacher is not the same kind of estimate in {run} and {runs[0]}: no difference is shown"
    if any(same_positions(first, evaluation) for _, evaluation in others):
        yield from _about_intervals(len(first.by_document.numbers))


def _about_intervals(n_documents: int) -> Iterator[str]:
    """What the intervals rest on, and what they leave out."""
    if n_documents < FEW_DOCUMENTS:
        yield (
            f"only {n_documents} evaluated document{'' if n_documents == 1 else 's'}: too few to rely on the "
            f"intervals; evaluate on {FEW_DOCUMENTS} or more"
        )
    yield (
        "intervals are about these students, not about their recipes: another seed of one recipe often differs by "
        "more, so compare several seeds"
    )
