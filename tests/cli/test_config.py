"""`kdpipe config` on files that are right and wrong."""

import json
from pathlib import Path

import pytest

from kdpipe.cli.main import run


@pytest.mark.parametrize("command", ["train", "cache-teacher"])
def test_the_file_of_init_is_valid(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "init", "--for", command]) == 0
    file = tmp_path / "kd.yaml"
    file.write_text(capsys.readouterr().out)
    assert run(["config", "check", str(file), "--for", command]) == 0


def test_check_lists_all_errors_with_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "kd.yaml"
    file.write_text("learning_rate: 1\nrun:\n  batch_size: many\n  eval_steps: 5\nguard: {preset: ultra_stable}\n")
    assert run(["config", "check", str(file)]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"{file}:{number}" for number in (1, 3, 4, 5)]
    for line, name in zip(lines, ("optimizer.lr", "'many'", "evaluation.every", "ultra-stable"), strict=True):
        assert name in line


def test_show_names_the_source_of_each_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "kd.yaml"
    file.write_text("run:\n  batch_size: 4\n")
    assert run(["config", "show", str(file), "--set", "seed=3"]) == 0
    text = capsys.readouterr().out
    assert f"4  ({file}:2)" in text.replace("   ", " ") or f"4 ({file}:2)" in text
    assert "3 (--set seed=3)" in text and "(default)" in text


@pytest.mark.parametrize("command", ["train", "cache-teacher"])
def test_schema_is_a_json_schema(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "schema", "--for", command]) == 0
    assert json.loads(capsys.readouterr().out)["additionalProperties"] is False
