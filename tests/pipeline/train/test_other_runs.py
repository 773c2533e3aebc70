"""A run resumes from its own checkpoints only, and reports missing metrics."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from kdpipe.pipeline.training import checkpoints
from kdpipe.schemas.errors import ConfigError, Interrupted
from kdpipe.schemas.train_settings import TrainSettings
from support.stage_two import RecordingProgress, Stopping, history, run, settings_for

SHAPE: dict[str, Any] = {
    "run": {"max_steps": 8, "batch_size": 2, "accumulate": 1},
    "evaluation": {"every": 4, "limit": 1},
    "saving": {"every": 2, "keep": 9},
}
# What makes another run: the settings that change, and the difference in messages.
OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "seed": ({"seed": 5}, "seed: 5 -> 0"),
    "learning rate": ({"optimizer": {"lr": 1e-3}}, "optimizer.lr: 0.001 -> 0.003"),
    "mode": ({"losses": {"mode": "output"}}, "losses.mode: output -> hybrid"),
    "batch": ({"run": {"batch_size": 4}}, "run.batch_size: 4 -> 2"),
    "temperature": ({"losses": {"temperature": 2.0}}, "losses.temperature: 2.0 -> 1.0"),
}


def shaped(folder: Path, out: Path, **changes: Any) -> TrainSettings:
    sections = {name: SHAPE.get(name, {}) | changes.get(name, {}) for name in SHAPE | changes if name != "seed"}
    return settings_for(folder, **sections).model_copy(update={"out": str(out), "seed": changes.get("seed", 0)})


@pytest.fixture(scope="module")
def stopped(folder: Path) -> Path:
    """A run that was stopped at step 6."""
    with pytest.raises(Interrupted):
        run(shaped(folder, folder / "other-whole"), Stopping(6, signal.SIGTERM))
    return folder / "other-whole"


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    run(shaped(folder, folder / "other-undisturbed"))
    return folder / "other-undisturbed"


def with_anothers(folder: Path, tmp_path: Path, stopped: Path, case: str) -> Path:
    """A copy of the stopped run with the checkpoint of another in place of step 6."""
    other = tmp_path / "other"
    with pytest.raises(Interrupted):
        run(shaped(folder, other, **OTHERS[case][0]), Stopping(6, signal.SIGTERM))
    shutil.copytree(stopped, tmp_path / "run")
    place = tmp_path / "run" / "checkpoints" / "step-000006"
    shutil.rmtree(place)
    shutil.copytree(other / "checkpoints" / "step-000006", place)
    return tmp_path / "run"


@pytest.mark.parametrize("case", OTHERS)
def test_a_checkpoint_of_another_run_is_not_resumed(
    folder: Path, tmp_path: Path, stopped: Path, whole: Path, case: str
) -> None:
    out = with_anothers(folder, tmp_path, stopped, case)
    settings, difference = shaped(folder, out), OTHERS[case][1]
    before = sorted(path.name for path in (out / "checkpoints").iterdir())
    with pytest.raises(ConfigError, match=r"step-000006.*run") as refused:
        run(settings, resume_from="6")
    assert refused.value.exit_code == 2 and difference in refused.value.message
    # Also when no other is left.
    shutil.copytree(out, tmp_path / "alone")
    for path in (tmp_path / "alone" / "checkpoints").iterdir():
        if path.name != "step-000006":
            shutil.rmtree(path)
    with pytest.raises(ConfigError, match="has no usable checkpoint") as refused:
        run(shaped(folder, tmp_path / "alone"))
    assert refused.value.exit_code == 2 and difference in refused.value.message
    # Nothing was changed, and the run resumes from the checkpoint before.
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == before
    progress = RecordingProgress()
    assert run(settings, progress).resumed_from == 4
    assert [line for line in progress.warnings if "step-000006 is of another run" in line and difference in line]
    assert history(out) == history(whole)


def test_a_checkpoint_with_another_learning_rate_is_of_another_run(folder: Path, tmp_path: Path, stopped: Path) -> None:
    out = with_anothers(folder, tmp_path, stopped, "learning rate")
    with pytest.raises(ConfigError, match=r"step-000006.*run"):
        run(shaped(folder, out, optimizer={"lr": 1e-3}), resume_from="6")


@pytest.mark.slow
def test_a_steered_run_resumes_from_checkpoints_of_its_earlier_settings(
    folder: Path, tmp_path: Path, stopped: Path
) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    slower = shaped(folder, tmp_path / "run", optimizer={"lr": 1e-3})
    # Stopped before anything is saved at the new rate: the checkpoint is of the run as it began.
    with pytest.raises(Interrupted):
        run(slower, Stopping(5, signal.SIGTERM), resume_from="4")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000005")
    assert run(slower).resumed_from == 4
    assert run(slower, resume_from="2").resumed_from == 2


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["missing", "cut", "torn"])
def test_a_resumed_run_reports_and_marks_missing_metrics(
    folder: Path, tmp_path: Path, stopped: Path, whole: Path, damage: str
) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    kept = {"missing": [], "cut": lines[:3], "torn": [*lines[:3], lines[3][:20]]}[damage]
    metrics.unlink() if damage == "missing" else metrics.write_bytes(b"".join(kept))
    progress = RecordingProgress()
    assert run(shaped(folder, tmp_path / "run"), progress).steps == 8
    n = 0 if damage == "missing" else 3
    assert [line for line in progress.warnings if f"metrics.jsonl has {n} of the 7 lines up to step 6" in line]
    assert history(tmp_path / "run") == [*history(whole)[:n], (6, "metrics_gap", None), *history(whole)[7:]]
    mark = [json.loads(line) for line in metrics.read_text().splitlines()][n]
    assert mark == {"step": 6, "metrics_gap": {"expected_lines": 7, "present_lines": n}}
    # A finished run that is called again has nothing more to say.
    again = RecordingProgress()
    run(shaped(folder, tmp_path / "run"), again)
    assert not [line for line in again.warnings if "metrics" in line]


def test_lines_after_the_checkpoint_and_torn_lines_are_removed(
    folder: Path, tmp_path: Path, stopped: Path, whole: Path
) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step":7,"verdict":"accept","loss":1.0}\n{"step":8,"ver')
    progress = RecordingProgress()
    run(shaped(folder, tmp_path / "run"), progress)
    assert history(tmp_path / "run") == history(whole)
    assert not [line for line in progress.warnings if "metrics" in line]


def everything(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["all broken", "folder missing", "another version"])
def test_a_run_without_a_usable_checkpoint_does_not_start_over(
    folder: Path, tmp_path: Path, stopped: Path, loss: str
) -> None:
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    steps = sorted((out / "checkpoints").iterdir())
    if loss == "folder missing":
        shutil.rmtree(out / "checkpoints")
    for path in steps if loss != "folder missing" else []:
        file, old, new = {
            "all broken": ("state.json", b'"step"', b'"stop"'),
            "another version": ("checkpoint.json", b'"version":2', b'"version":1'),
        }[loss]
        (path / file).write_bytes((path / file).read_bytes().replace(old, new))
    before = everything(out)
    with pytest.raises(ConfigError) as refused:
        run(shaped(folder, out))
    assert refused.value.exit_code == 2 and "--overwrite" in str(refused.value.hint)
    named = ["metrics.jsonl"] if loss == "folder missing" else [path.name for path in steps]
    assert all(name in refused.value.message for name in named)
    assert ("another version" in refused.value.message) == (loss == "another version")
    assert everything(out) == before
    assert run(shaped(folder, out), overwrite=True).resumed_from in (None, 0)


@pytest.mark.slow
def test_a_run_killed_before_its_first_save_starts(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(checkpoints, "save", killed)
        run(shaped(folder, out))
    assert (out / "metrics.jsonl").exists() and not (out / "checkpoints").exists()
    assert run(shaped(folder, out)).steps == 8
