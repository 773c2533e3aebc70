"""A finished command that is run again is answered from its folder, without torch; what is damaged is made again."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kdpipe.pipeline.training import training_run
from kdpipe.pipeline.training.completed_run import RECORD
from kdpipe.schemas.errors import ConfigError, KdpipeError
from kdpipe.schemas.run_report import TrainReport
from kdpipe.schemas.train_settings import TrainSettings
from support.stage_two import RecordingProgress, contents, run, settings_for, weights

SHAPE: dict[str, Any] = {"run": {"max_steps": 2, "batch_size": 2, "accumulate": 1}, "evaluation": {"limit": 1}}
AGAIN = """
import sys
from kdpipe.pipeline.train import train
from kdpipe.schemas.progress import SilentProgress
from kdpipe.schemas.train_settings import TrainSettings, TrainOptions
settings = TrainSettings.model_validate_json(sys.argv[1])
report = train(settings, TrainOptions(), SilentProgress())
assert not {"torch", "transformers"} & sys.modules.keys()
print(report.model_dump_json())
"""


def shaped(folder: Path, out: Path, **changes: Any) -> TrainSettings:
    sections = {name: SHAPE.get(name, {}) | changes.get(name, {}) for name in SHAPE | changes}
    return settings_for(folder, **sections).model_copy(update={"out": str(out)})


@pytest.fixture(scope="module")
def finished(folder: Path) -> tuple[Path, TrainReport]:
    out = folder / "finished-runs"
    return out, run(shaped(folder, out))


@pytest.fixture
def no_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that imports or loads a model is reached."""

    def reached(*_: object) -> None:
        raise AssertionError("a finished run was prepared")

    monkeypatch.setattr(training_run, "plan_run", reached)


@pytest.mark.usefixtures("no_look")
def test_a_finished_command_returns_its_report_again(folder: Path, finished: tuple[Path, TrainReport]) -> None:
    out, report = finished
    before, progress = contents(out), RecordingProgress()
    assert run(shaped(folder, out), progress) == report
    assert [line for line in progress.messages if "is finished: 2 of 2 steps" in line]
    assert contents(out) == before


@pytest.mark.usefixtures("no_look")
def test_settings_that_may_differ_return_the_same_report(
    folder: Path, tmp_path: Path, finished: tuple[Path, TrainReport]
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(finished[0], moved)
    shutil.copy(folder / "student.json", tmp_path / "renamed.json")
    changes = {
        "machine": {"threads": 2},
        "saving": {"every": 1},
        "student": {"name": str(tmp_path / "renamed.json")},
        "run": {"batch_size": 1, "accumulate": 2},
    }
    report = run(shaped(folder, moved, **changes))
    assert (report.run, report.final) == (str(moved), str(moved / "final"))
    assert report.evaluation == finished[1].evaluation


def test_a_finished_command_returns_its_report_without_torch(folder: Path, finished: tuple[Path, TrainReport]) -> None:
    words = [sys.executable, "-c", AGAIN, shaped(folder, finished[0]).model_dump_json()]
    ended = subprocess.run(words, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == finished[1].model_dump(mode="json")


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "folder missing"])
def test_a_run_with_a_damaged_student_is_not_finished(
    folder: Path, tmp_path: Path, finished: tuple[Path, TrainReport], damage: str
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    file = out / "final" / "model.safetensors"
    data = bytearray(file.read_bytes())
    if damage == "flipped":
        data[-1] ^= 1
        file.write_bytes(data)
    elif damage == "cut":
        file.write_bytes(data[:-1])
    elif damage == "missing":
        file.unlink()
    else:
        shutil.rmtree(out / "final")
    progress = RecordingProgress()
    report = run(shaped(folder, out), progress)
    assert (report.steps, report.resumed_from, report.evaluation) == (2, 2, finished[1].evaluation)
    assert not [line for line in progress.messages if "is finished" in line]
    assert [line for line in progress.warnings if "saving the student of step 2 again" in line]
    for name, value in weights(finished[0]).items():
        assert torch.equal(value, weights(out)[name]), name
    again = RecordingProgress()
    assert run(shaped(folder, out), again) == report
    assert [line for line in again.messages if "is finished" in line]


def test_a_student_saved_by_a_call_that_failed_afterwards_is_saved_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = shaped(folder, tmp_path / "run")

    def differs(*_: object, **__: object) -> float:
        raise KdpipeError("the student reads otherwise")

    with monkeypatch.context() as patched, pytest.raises(KdpipeError, match="reads otherwise"):
        patched.setattr("kdpipe.pipeline.training.finalize.check_reload", differs)
        run(settings)
    assert (tmp_path / "run" / "final").is_dir() and not (tmp_path / "run" / RECORD).exists()
    saved: list[bool] = []
    monkeypatch.setattr("kdpipe.pipeline.training.finalize.check_reload", lambda *_, **__: saved.append(True))
    run(settings)
    assert saved and (tmp_path / "run" / RECORD).exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"run": {"max_steps": 1}},
        {"losses": {"temperature": 2.0}},
        {"student": {"name": "tiny"}},
        {"cache": {"path": "missing"}},
    ],
    ids=str,
)
def test_another_command_does_not_return_the_report_of_a_finished_run(
    folder: Path, finished: tuple[Path, TrainReport], changes: dict[str, Any]
) -> None:
    before = contents(finished[0])
    with pytest.raises(KdpipeError):
        run(shaped(folder, finished[0], **changes))
    assert contents(finished[0]) == before


def test_a_record_of_another_run_or_version_is_ignored(
    folder: Path, tmp_path: Path, finished: tuple[Path, TrainReport]
) -> None:
    for number, (old, new) in enumerate(((b'"version":1', b'"version":2'), (b'"kdpipe":"', b'"kdpipe":"0.0.'))):
        out = tmp_path / f"run-{number}"
        shutil.copytree(finished[0], out)
        (out / RECORD).write_bytes((out / RECORD).read_bytes().replace(old, new))
        progress = RecordingProgress()
        assert run(shaped(folder, out), progress).resumed_from == 2
        assert not [line for line in progress.messages if "is finished" in line]
    shutil.copytree(finished[0], tmp_path / "other")
    (tmp_path / "other" / "run.json").write_text("{")
    with pytest.raises(ConfigError, match="unreadable record"):
        run(shaped(folder, tmp_path / "other"))


def test_a_run_that_trains_further_is_not_finished_until_its_end(
    folder: Path, tmp_path: Path, finished: tuple[Path, TrainReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    seen: list[bool] = []
    monkeypatch.setattr(RecordingProgress, "update", lambda *_: seen.append((out / RECORD).exists()))
    run(shaped(folder, out), resume_from="0")
    assert len(seen) >= 2 and not any(seen) and (out / RECORD).exists()
