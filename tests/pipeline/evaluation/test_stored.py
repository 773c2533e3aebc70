"""A run folder is read as it was written; another folder is refused as not a run."""

import errno
from pathlib import Path
from unittest import mock

import pytest

from kdpipe.pipeline.evaluation.stored import (
    base_model_of,
    load_evaluation,
    load_settings,
    save_evaluation,
    save_settings,
    student_folder,
)
from kdpipe.schemas.errors import ConfigError, FileDamaged, WriteError
from kdpipe.schemas.model import ModelSettings
from support.evaluations import evaluation, run_folder


def test_a_stored_evaluation_is_loaded_unchanged(tmp_path: Path) -> None:
    measured = evaluation()
    save_evaluation(tmp_path, measured)
    assert load_evaluation(tmp_path) == measured
    save_evaluation(tmp_path, evaluation(step=20))
    result = load_evaluation(tmp_path)
    assert result is not None
    assert result.step == 20
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["evaluation.json"]
    assert load_evaluation(tmp_path / "elsewhere") is None


def test_a_failed_write_keeps_the_previous_evaluation(tmp_path: Path) -> None:
    save_evaluation(tmp_path, evaluation())
    full = OSError(errno.ENOSPC, "No space left on device")
    with (
        mock.patch("os.replace", side_effect=full),
        pytest.raises(WriteError, match="an evaluation could not be written"),
    ):
        save_evaluation(tmp_path, evaluation(step=20))
    assert load_evaluation(tmp_path) == evaluation()


def test_a_failed_write_keeps_the_previous_settings(tmp_path: Path) -> None:
    save_settings(tmp_path, {"seed": 1})
    with (
        mock.patch("os.fsync", side_effect=OSError(errno.ENOSPC, "No space left on device")),
        pytest.raises(WriteError, match="the settings could not be written"),
    ):
        save_settings(tmp_path, {"seed": 2})
    assert load_settings(tmp_path) == {"seed": 1}


def test_a_changed_evaluation_is_refused(tmp_path: Path) -> None:
    save_evaluation(tmp_path, evaluation())
    path = tmp_path / "evaluation.json"
    path.write_text(path.read_text().replace('"positions":[100,', '"positions":[100,100,'))
    with pytest.raises(FileDamaged, match="columns differ in length"):
        load_evaluation(tmp_path)


def test_settings_are_read_by_their_dotted_names(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", {"losses": {"alpha": 0.1, "hidden": {"pairs": []}}, "seed": 3}, None)
    assert load_settings(run) == {"losses.alpha": 0.1, "losses.hidden.pairs": [], "seed": 3}


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config.yaml"):
        load_settings(tmp_path)
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        load_settings(tmp_path / "nowhere")


def test_an_adapter_names_its_base(tmp_path: Path) -> None:
    assert base_model_of(str(tmp_path)) == ModelSettings(name=str(tmp_path))
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    assert base_model_of(str(tmp_path)) == ModelSettings(name="org/base")
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base", "revision": "abc"}')
    assert base_model_of(str(tmp_path)) == ModelSettings(name="org/base", revision="abc")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"adapter_config.json has no base_model_name_or_path"):
        base_model_of(str(tmp_path))


def test_a_run_is_loaded_as_the_student_in_its_final_folder(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", {"seed": 0}, None)
    with pytest.raises(ConfigError, match=r"has no student yet") as caught:
        student_folder(str(run))
    assert caught.value.hint == "run its command again to finish it"
    (run / "final").mkdir()
    assert student_folder(str(run)) == str(run / "final")
    assert student_folder("org/model") == "org/model"
    assert student_folder(str(tmp_path)) == str(tmp_path)
