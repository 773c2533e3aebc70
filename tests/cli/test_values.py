"""Values of options are shown as they were given, wrong ones are refused in plain words, and names are completed."""

import subprocess
from pathlib import Path

import pytest

from kdpipe.cli.main import run
from support.commands import kdpipe

TRAIN = ["train", "--from-cache", "none", "--student", "tiny", "--out", "o"]


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--max-steps", "abc"], "'abc' is not a whole number"),
        (["--max-steps", "1.5"], "'1.5' is not a whole number"),
        (["--max-steps", "1e3"], "none"),
        (["--lr", "fast"], "'fast' is not a number"),
        (["--lr", "20"], "not 20\n"),
        (["--mode", "both"], "'both'"),
    ],
)
def test_a_value_is_shown_as_given(words: list[str], shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*TRAIN, *words]) == 2
    error = capsys.readouterr().err
    assert shown in error
    assert "Input should be" not in error
    assert "Value error" not in error


def test_a_wrong_value_that_a_flag_overrides_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (config := tmp_path / "a.yaml").write_text("run:\n  batch_size: many\n", encoding="utf-8")
    assert run([*TRAIN, "--config", str(config), "--batch-size", "2"]) == 2
    error = capsys.readouterr().err
    assert "run.batch_size" in error
    assert "'many'" in error
    assert "--batch-size overrides it" in error


def test_config_show_lists_all_errors_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (config := tmp_path / "a.yaml").write_text("run:\n  batch_size: many\nseed: -1\n", encoding="utf-8")
    assert run(["config", "show", str(config)]) == 2
    found = capsys.readouterr()
    assert [line.partition(": ")[0] for line in found.out.splitlines()] == [f"{config}:2", f"{config}:3"]
    assert "2 errors" in found.err


def test_commands_and_options_are_completed() -> None:
    for typed, expected in (("kdpipe tr", "train"), ("kdpipe train --from", "--from-cache")):
        words = typed.split()
        environment = {"_KDPIPE_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1)}
        done = subprocess.run([kdpipe()], env=environment, capture_output=True, text=True, check=False)
        assert expected in done.stdout.split(), done
