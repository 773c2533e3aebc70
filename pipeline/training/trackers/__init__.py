"""Experiment trackers, in addition to metrics.jsonl.

In: `report_to`, the settings, the run's folder, and every line of metrics.jsonl. Out: the files of each library, in the
run's folder unless its own environment variables set another place.
"""

import importlib
import importlib.util
import operator
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, final

from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.losses import LOGIT_LOSSES
from kdpipe.schemas.progress import Progress

# A tracker is a module here, a row in this table, and its name in `schemas.choices.TrackerName`; the name is also that
# of its library and of the extra that installs it.
TRACKERS: Final[dict[str, str]] = {
    "tensorboard": "kdpipe.pipeline.training.trackers.tensorboard:TensorBoard",
    "wandb": "kdpipe.pipeline.training.trackers.wandb:WeightsAndBiases",
    "trackio": "kdpipe.pipeline.training.trackers.trackio:Trackio",
    "mlflow": "kdpipe.pipeline.training.trackers.mlflow:Mlflow",
}
PROJECT: Final = "kdpipe"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """A run as trackers see it: `step` is the one it resumes from, 0 for a new one."""

    name: str
    folder: Path
    config: Mapping[str, str]
    step: int = 0


class Tracker(Protocol):
    """One library: opened when a run starts, resumes or rolls back, logs at steps that never decrease, finished
    once.
    """

    def __init__(self, run: TrackedRun) -> None: ...

    @property
    def location(self) -> str:
        """How to view or upload the run, e.g. `view: tensorboard --logdir runs/a`."""
        ...

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log numbers of a step by name."""
        ...

    def finish(self) -> None:
        """Write or send what is still in memory."""
        ...


def check_installed(names: Collection[str]) -> None:
    """Refuse a tracker whose library is missing."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"--report-to {name}: {name} is not installed", hint=f"pip install 'kdpipe[{name}]'")


@final
class Trackers:
    """The trackers of a run; one that fails is disabled, and the run continues."""

    def __init__(self, names: Collection[str], run: TrackedRun, progress: Progress) -> None:
        check_installed(names)
        self._run, self._progress = run, progress
        self._open: dict[str, Tracker] = {}
        self._open_all(names, run)
        for name in list(self._open):
            self._try(name, partial(self._show, name))

    def write(self, line: Mapping[str, Any]) -> None:
        """Log the numbers of a line of metrics.jsonl."""
        numbers = dict(_flat("", line))
        step = int(numbers.pop("step", 0))
        numbers |= usual_names(numbers)
        for name, tracker in list(self._open.items()):
            self._try(name, partial(tracker.log, step, numbers))

    def rewind(self, step: int) -> None:
        """Reopen the trackers at an earlier step."""
        names = list(self._open)
        self.finish()
        self._open_all(names, replace(self._run, step=step))

    def finish(self) -> None:
        """Finish every tracker."""
        for name, tracker in list(self._open.items()):
            self._try(name, tracker.finish)
        self._open.clear()

    def _open_all(self, names: Collection[str], run: TrackedRun) -> None:
        for name in names:
            module, _, class_name = TRACKERS[name].partition(":")
            tracker_class = getattr(importlib.import_module(module), class_name)
            self._try(name, partial(self._open_one, name, tracker_class, run))

    def _open_one(self, name: str, tracker_class: Callable[[TrackedRun], Tracker], run: TrackedRun) -> None:
        self._open[name] = tracker_class(run)

    def _show(self, name: str) -> None:
        self._progress.message(f"{name:<12}{self._open[name].location}")

    def _try(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except ConfigError:
            raise
        except Exception as error:  # other libraries and networks must not end the run
            self._open.pop(name, None)
            lines = str(error).splitlines() or [type(error).__name__]
            self._progress.warning(
                f"{name} failed and is disabled for this run (metrics.jsonl is complete): {lines[0]}"
            )


def stored_id(run: TrackedRun, name: str, make: Callable[[], str]) -> str:
    """The id of a run in a tracker, created once and stored in the run's folder, so that a resumed run keeps it."""
    file = run.folder / "trackers" / name
    if not file.is_file():
        file.parent.mkdir(exist_ok=True)
        file.write_text(make())
    return file.read_text()


def usual_names(numbers: Mapping[str, float]) -> dict[str, float]:
    """The numbers of a step or an evaluation under the names that other trainers use.

    `train/soft_loss` is the mean of the logit losses on the teacher's predictions, weighted as in the objective.
    """
    usual = {
        f"eval/{name.removeprefix('evaluation/')}": value
        for name, value in numbers.items()
        if name.startswith("evaluation/") and name.count("/") == 1
    }
    for name in ("loss", "loss_shifted", "temperature", "gradient_norm"):
        if name in numbers:
            usual[f"train/{name}"] = numbers[name]
    for name, value in numbers.items():
        if name.startswith("rates/"):
            usual.setdefault("train/learning_rate", value)
    terms = [name.split("/")[1] for name in numbers if re.fullmatch("terms/[^/]+/raw", name)]
    for group, names in {
        "hard": [term for term in terms if _compares(term) == "label"],
        "soft": [term for term in terms if _compares(term) in ("exact_ids", "bins")],
    }.items():
        weights = [numbers.get(f"terms/{term}/weight", 0.0) for term in names]
        if sum(weights) > 0:
            raw = [numbers[f"terms/{term}/raw"] for term in names]
            usual[f"train/{group}_loss"] = sum(map(operator.mul, weights, raw)) / sum(weights)
    return usual


def _compares(term: str) -> str | None:
    """What a logged logit loss compares, None for hidden losses; logged names may have a suffix, such as `_bound`."""
    name = next((name for name in (term, term.rpartition("_")[0]) if name in LOGIT_LOSSES), None)
    return None if name is None else LOGIT_LOSSES[name].compares


def _flat(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """The numbers of a line by path, such as terms/ce/raw."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}/{key}" if name else key, inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)
