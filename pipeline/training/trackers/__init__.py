"""Trackers: where a run is followed from elsewhere; metrics.jsonl is always there.

In: `report_to`, the settings, the run's folder, and every line of metrics.jsonl. Out: what each library keeps, below
the run's folder unless its own environment variables say where.
"""

import importlib
import importlib.util
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, final

from kdpipe.schemas.errors import ConfigError

KINDS: Final[dict[str, str]] = {
    "tensorboard": "kdpipe.pipeline.training.trackers.tensorboard:TensorBoard",
    "wandb": "kdpipe.pipeline.training.trackers.wandb:WeightsAndBiases",
    "trackio": "kdpipe.pipeline.training.trackers.trackio:Trackio",
    "mlflow": "kdpipe.pipeline.training.trackers.mlflow:Mlflow",
}
PROJECT: Final = "kdpipe"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """A run as trackers know it: `step` is the one it goes on from, 0 for a new one."""

    name: str
    folder: Path
    config: Mapping[str, str]
    step: int = 0


class Tracker(Protocol):
    """One library; made when the run starts or goes back to a step, told numbers by name at steps that never fall, and
    finished once."""

    def __init__(self, run: TrackedRun) -> None: ...

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Keep some numbers of a step."""
        ...

    def finish(self) -> None:
        """Nothing more will come."""
        ...


def check_installed(kinds: Collection[str]) -> None:
    """Refuse a tracker whose library is not there, before anything is loaded."""
    for kind in kinds:
        if importlib.util.find_spec(kind) is None:
            raise ConfigError(f"--report-to names {kind}, which is not installed", hint=f"pip install 'kdpipe[{kind}]'")


@final
class Trackers:
    """All that were asked for; one that fails is left out from then on, and the run goes on."""

    def __init__(self, kinds: Collection[str], run: TrackedRun, warn: Callable[[str], None]) -> None:
        check_installed(kinds)
        self._run, self._warn = run, warn
        self._open: dict[str, Tracker] = {}
        self._begin_all(kinds, run)

    def write(self, line: Mapping[str, Any]) -> None:
        """Pass on the numbers of a line of metrics.jsonl."""
        numbers = dict(_flat("", line))
        step = int(numbers.pop("step", 0))
        for kind, tracker in list(self._open.items()):
            self._try(kind, partial(tracker.log, step, numbers))

    def rewind(self, step: int) -> None:
        """Go back to a step, as a run does that is resumed from there."""
        kinds = list(self._open)
        self.finish()
        self._begin_all(kinds, replace(self._run, step=step))

    def finish(self) -> None:
        """Let each end."""
        for kind, tracker in list(self._open.items()):
            self._try(kind, tracker.finish)
        self._open.clear()

    def _begin_all(self, kinds: Collection[str], run: TrackedRun) -> None:
        for kind in kinds:
            module, _, name = KINDS[kind].partition(":")
            made = getattr(importlib.import_module(module), name)
            self._try(kind, partial(self._begin, kind, made, run))

    def _begin(self, kind: str, make: Callable[[TrackedRun], Tracker], run: TrackedRun) -> None:
        self._open[kind] = make(run)

    def _try(self, kind: str, call: Callable[[], None]) -> None:
        try:
            call()
        except ConfigError:
            raise
        except Exception as error:  # libraries of others, and networks: none of it may cost the run
            self._open.pop(kind, None)
            lines = str(error).splitlines() or [type(error).__name__]
            self._warn(f"{kind} fails and is told no more; metrics.jsonl has everything: {lines[0]}")


def remembered(run: TrackedRun, kind: str, make: Callable[[], str]) -> str:
    """The id under which a tracker knows a run, made once and kept in a file, so that a run gone on with is one."""
    file = run.folder / "trackers" / kind
    if not file.is_file():
        file.parent.mkdir(exist_ok=True)
        file.write_text(make())
    return file.read_text()


def _flat(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """The numbers of a line, named as trackers group them: terms/ce/raw."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}/{key}" if name else key, inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)
