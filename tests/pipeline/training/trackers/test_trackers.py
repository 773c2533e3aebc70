"""What all trackers share: one that is missing or fails, and what of a line they are told."""

import importlib.util
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest

from kdpipe.pipeline.training import trackers
from kdpipe.pipeline.training.trackers import KINDS, TrackedRun, Trackers, check_installed, remembered
from kdpipe.schemas.choices import TrackerName
from kdpipe.schemas.errors import ConfigError


class Recorder:
    """Remembers; fails when it is told to."""

    made: "Recorder | None" = None

    def __init__(self, run: TrackedRun) -> None:
        self.run, self.told, self.finished, self.fails = run, list[tuple[int, dict[str, float]]](), 0, False
        Recorder.made = self

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        if self.fails:
            raise ConnectionError("the server is gone\nand more")
        self.told.append((step, dict(numbers)))

    def finish(self) -> None:
        self.finished += 1


class Broken(Recorder):
    """Fails at once."""

    def __init__(self, run: TrackedRun) -> None:
        raise OSError("no space left")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrackedRun:
    module = ModuleType("made_up_tracker")
    module.Recorder, module.Broken = Recorder, Broken  # type: ignore[attr-defined]  # a module made here
    monkeypatch.setitem(sys.modules, "made_up_tracker", module)
    monkeypatch.setitem(KINDS, "json", "made_up_tracker:Recorder")
    monkeypatch.setitem(KINDS, "csv", "made_up_tracker:Broken")
    return TrackedRun(name="a", folder=tmp_path, config={"seed": "0"})


def test_every_tracker_that_settings_name_is_known() -> None:
    assert set(KINDS) == set(get_args(TrackerName))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_missing_library_is_told_with_its_install_line(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=f"--report-to names {kind}, which is not installed") as caught:
        check_installed([kind])
    assert caught.value.hint == f"pip install 'kdpipe[{kind}]'"


def test_trackers_are_told_the_numbers_of_a_line_by_group(run: TrackedRun) -> None:
    warned: list[str] = []
    told = Trackers(["json"], run, warned.append)
    line: dict[str, Any] = {"step": 3, "loss": math.inf, "why": "x", "best": None, "done": True, "count": 2}
    told.write({**line, "terms": {"ce": {"raw": 0.5}}})
    told.finish()
    told.finish()
    recorder = Recorder.made
    assert recorder is not None
    assert recorder.run is run
    assert recorder.told == [(3, {"loss": math.inf, "count": 2.0, "terms/ce/raw": 0.5})]
    assert recorder.finished == 1
    assert warned == []


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(run: TrackedRun) -> None:
    warned: list[str] = []
    told = Trackers(["csv", "json"], run, warned.append)
    assert warned == ["csv fails and is told no more; metrics.jsonl has everything: no space left"]
    assert Recorder.made is not None
    Recorder.made.fails = True
    told.write({"step": 1, "loss": 1.0})
    told.write({"step": 2, "loss": 1.0})
    told.finish()
    assert warned[1:] == ["json fails and is told no more; metrics.jsonl has everything: the server is gone"]
    assert Recorder.made.finished == 0


def test_trackers_begin_again_at_the_step_of_a_rollback(run: TrackedRun) -> None:
    warned: list[str] = []
    told = Trackers(["csv", "json"], run, warned.append)
    first = Recorder.made
    told.write({"step": 5, "loss": 1.0})
    told.rewind(3)
    again = Recorder.made
    told.write({"step": 4, "loss": 2.0})
    told.finish()
    assert first is not None and again is not None and again is not first
    assert (first.finished, first.told) == (1, [(5, {"loss": 1.0})])
    assert (again.run.step, again.run.name, again.finished, again.told) == (3, run.name, 1, [(4, {"loss": 2.0})])
    # What has failed before is not tried again.
    assert len(warned) == 1


def test_an_id_is_made_once(run: TrackedRun) -> None:
    assert remembered(run, "json", lambda: "first") == "first"
    assert remembered(run, "json", lambda: "second") == "first"
    assert remembered(run, "csv", lambda: "third") == "third"


def test_nothing_of_a_library_is_loaded_before_it_is_asked_for() -> None:
    assert not {"wandb", "mlflow", "trackio"} & set(vars(trackers))
