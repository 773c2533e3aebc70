"""`compare`: runs beside each other: what they were told differently, what came of it, and how sure that is.

In: folders of runs. Out: a `CompareReport`, the first run being the one that others are held against. Before it:
`cli/compare.py`. After it: `pipeline/evaluation` reads and compares. Nothing is loaded or measured again.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdpipe.pipeline.evaluation.spread import differences, same_sequences
from kdpipe.pipeline.evaluation.stored import load_evaluation, load_settings
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.train_report import ComparedRun, CompareReport, Evaluation

# Where a run lies is no difference between runs.
PLACES = ("out",)
METRICS = ("cross_entropy", "perplexity", "kl_teacher", "top1_agreement", "ece", "loss")


def compare(folders: Sequence[str]) -> CompareReport:
    """Put runs beside each other."""
    if len(folders) < 2:
        raise ConfigError("one run cannot be compared", hint="give two folders of runs, or more")
    runs = [Path(folder).expanduser() for folder in folders]
    settings = [load_settings(run) for run in runs]
    evaluations = [load_evaluation(run) for run in runs]
    differing = _differing(settings)
    first = evaluations[0]
    return CompareReport(
        runs=tuple(
            ComparedRun(
                run=str(run),
                settings={name: _shown(own.get(name)) for name in differing},
                step=None if evaluation is None else evaluation.step,
                positions=None if evaluation is None else evaluation.positions,
                numbers={} if evaluation is None else {name: getattr(evaluation, name) for name in METRICS},
                differences=differences(first, evaluation) if number and first and evaluation else {},
            )
            for number, (run, own, evaluation) in enumerate(zip(runs, settings, evaluations, strict=True))
        ),
        notes=tuple(_notes(runs, evaluations)),
    )


def _differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the settings that are not the same in all runs."""
    names = dict.fromkeys(name for own in settings for name in own if name not in PLACES)
    return [name for name in names if len({_shown(own.get(name)) for own in settings}) > 1]


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "-" if value is None or value == [] else json.dumps(value, ensure_ascii=False)


def _notes(runs: Sequence[Path], evaluations: Sequence[Evaluation | None]) -> list[str]:
    found = [
        f"{run} has not been evaluated: its run is not at its end, or its cache has no validation split"
        for run, evaluation in zip(runs, evaluations, strict=True)
        if evaluation is None
    ]
    first = evaluations[0]
    if first is None:
        return [*found, "the first run has no numbers, so that no differences can be told"]
    for run, evaluation in zip(runs[1:], evaluations[1:], strict=True):
        if evaluation is not None and not same_sequences(first, evaluation):
            found.append(f"{run} was evaluated on other sequences than {runs[0]}: there are no differences to tell")
        elif evaluation is not None and evaluation.kl_teacher_estimate != first.kl_teacher_estimate:
            found.append(f"KL to the teacher is not the same estimate in {run} and {runs[0]}")
    return found
