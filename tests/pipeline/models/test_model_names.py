"""Models in output folders are named by the meaningful part of their path."""

from dataclasses import replace
from pathlib import Path

import pytest

from kdpipe.pipeline.models.model_info import read_model_info
from kdpipe.pipeline.models.model_names import is_placeholder, name_of_folder
from kdpipe.schemas.model import ModelSettings
from support.models import tiny_llama


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("llama-big", "llama-big"),
        ("runs/llama-big/final", "llama-big"),
        ("llama-big/checkpoint-123", "llama-big"),
        ("llama-big/checkpoints/step-100", "llama-big"),
        ("llama-big/final_checkpoint", "llama-big"),
        ("hub/models--org--llama-big/snapshots/0123456789abcdef0123456789abcdef01234567", "org/llama-big"),
        ("final-exam", "final-exam"),
    ],
)
def test_an_output_folder_has_the_name_of_its_run(folder: str, name: str, tmp_path: Path) -> None:
    shape = read_model_info(ModelSettings(name=str(tiny_llama(tmp_path / "model"))))
    assert name_of_folder(tmp_path / folder, shape) == name


@pytest.mark.parametrize(
    ("stated", "name"),
    [("org/large", "org/large"), ("/data/large", "large"), ("/data/final", "llama of"), ("", "llama of")],
)
def test_the_config_decides_where_no_folder_does(stated: str, name: str, tmp_path: Path) -> None:
    shape = read_model_info(ModelSettings(name=str(tiny_llama(tmp_path / "model"))))
    shape.config._name_or_path = stated
    found = name_of_folder(Path("/output/runs/run/final"), replace(shape, n_parameters=1234))
    assert found == (name if name != "llama of" else "llama of 1,234 parameters")


@pytest.mark.parametrize("name", ["final", "Final", "checkpoint-10", "step_200", "epoch3", "last", "7", "a" * 40])
def test_what_any_model_may_be_called_is_a_placeholder(name: str) -> None:
    assert is_placeholder(name)
    assert not is_placeholder(f"llama-{name}")
