"""All trackers: the table, missing libraries, failures, and the numbers that are logged."""

import importlib.util
import math
from pathlib import Path
from typing import Any, get_args

import pytest

from kdpipe.pipeline.training import trackers
from kdpipe.pipeline.training.trackers import TRACKERS, TrackedRun, Trackers, check_installed, stored_id, usual_names
from kdpipe.schemas.choices import TrackerName
from kdpipe.schemas.errors import ConfigError
from support.recording import RecordingProgress
from support.trackers import RecordingTracker


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrackedRun:
    """A tracker is added by a row: `json` records, `csv` fails when it is opened (any names of installed modules)."""
    monkeypatch.setitem(TRACKERS, "json", "support.trackers:RecordingTracker")
    monkeypatch.setitem(TRACKERS, "csv", "support.trackers:BrokenTracker")
    return TrackedRun(name="a", folder=tmp_path, config={"seed": "0"})


def test_settings_and_table_have_the_same_trackers() -> None:
    assert set(TRACKERS) == set(get_args(TrackerName))


@pytest.mark.parametrize("name", sorted(TRACKERS))
def test_every_tracker_is_a_module_of_its_name(name: str) -> None:
    module, _, class_name = TRACKERS[name].partition(":")
    assert module == f"{trackers.__name__}.{name}" and class_name
    assert importlib.util.find_spec(module) is not None


@pytest.mark.parametrize("name", sorted(TRACKERS))
def test_a_missing_library_is_refused_with_its_install_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=name) as raised:
        check_installed([name])
    assert raised.value.hint == f"pip install 'kdpipe[{name}]'"


def test_numbers_of_a_line_are_logged_by_path(run: TrackedRun) -> None:
    progress = RecordingProgress()
    opened = Trackers(["json"], run, progress)
    line: dict[str, Any] = {"step": 3, "loss": math.inf, "why": "x", "best": None, "done": True, "count": 2}
    opened.write({**line, "terms": {"ce": {"raw": 0.5}}})
    opened.finish()
    opened.finish()
    recorder = RecordingTracker.last
    assert recorder is not None
    assert recorder.run is run
    assert recorder.logged == [(3, {"loss": math.inf, "count": 2.0, "terms/ce/raw": 0.5, "train/loss": math.inf})]
    assert recorder.n_finished == 1
    assert progress.warnings == []


def test_a_tracker_that_fails_is_disabled_and_the_run_continues(run: TrackedRun) -> None:
    progress = RecordingProgress()
    opened = Trackers(["csv", "json"], run, progress)
    [warning] = progress.warnings
    assert warning.startswith("csv failed") and warning.endswith(": no space left")
    assert RecordingTracker.last is not None
    RecordingTracker.last.fails = True
    opened.write({"step": 1, "loss": 1.0})
    opened.write({"step": 2, "loss": 1.0})
    opened.finish()
    [_, warning] = progress.warnings
    assert warning.startswith("json failed") and warning.endswith(": the server is gone")
    assert RecordingTracker.last.n_finished == 0


def test_trackers_are_reopened_at_the_step_of_a_rollback(run: TrackedRun) -> None:
    progress = RecordingProgress()
    opened = Trackers(["csv", "json"], run, progress)
    first = RecordingTracker.last
    opened.write({"step": 5, "loss": 1.0})
    opened.rewind(3)
    second = RecordingTracker.last
    opened.write({"step": 4, "loss": 2.0})
    opened.finish()
    assert first is not None and second is not None and second is not first
    assert (first.n_finished, first.logged) == (1, [(5, {"loss": 1.0, "train/loss": 1.0})])
    assert (second.run.step, second.run.name, second.n_finished) == (3, run.name, 1)
    assert second.logged == [(4, {"loss": 2.0, "train/loss": 2.0})]
    # A tracker that has failed is not tried again.
    assert len(progress.warnings) == 1
    assert progress.messages == [f"json        view: json {run.folder}"]


def test_the_id_of_a_run_is_created_once(run: TrackedRun) -> None:
    assert stored_id(run, "json", lambda: "first") == "first"
    assert stored_id(run, "json", lambda: "second") == "first"
    assert stored_id(run, "csv", lambda: "third") == "third"


def test_no_library_is_imported_before_it_is_needed() -> None:
    assert not {"wandb", "mlflow", "trackio"} & set(vars(trackers))


def test_a_step_is_also_logged_under_the_usual_names() -> None:
    terms = {"ce": (2.0, 0.5), "forward_kl_bound": (1.0, 0.3), "reverse_kl": (4.0, 0.1), "cosine": (9.0, 1.0)}
    numbers = {f"terms/{name}/raw": raw for name, (raw, _) in terms.items()}
    numbers |= {f"terms/{name}/weight": weight for name, (_, weight) in terms.items()}
    usual = usual_names(numbers | {"loss": 3.0, "rates/decay": 1e-4, "rates/no_decay": 2e-4})
    assert usual == pytest.approx(
        {"train/loss": 3.0, "train/learning_rate": 1e-4, "train/hard_loss": 2.0, "train/soft_loss": 1.75}
    )


def test_an_evaluation_is_also_logged_under_the_usual_names() -> None:
    numbers = {"evaluation/loss": 2.0, "evaluation/perplexity": 7.5, "evaluation/terms/ce": 2.0}
    assert usual_names(numbers) == {"eval/loss": 2.0, "eval/perplexity": 7.5}
