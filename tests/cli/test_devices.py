"""`--devices` is one option, on every command that computes."""

import pytest

from kdpipe.cli.main import run
from kdpipe.schemas.model import check_devices
from support.commands import SURFACE

COMPUTE = ("plan", "cache-teacher", "train", "eval", "compare", "sample", "chat", "demo", "cache verify")
# What a command needs besides --devices.
REQUIRED = {
    "plan": ["--teacher", "t"],
    "cache-teacher": ["--teacher", "t", "--data", "d", "--out", "o"],
    "train": ["--from-cache", "c", "--student", "tiny", "--out", "o"],
    "eval": ["--from-cache", "c", "--student", "s"],
    "compare": ["a", "b"],
    "sample": ["model"],
    "chat": ["model"],
    "demo": [],
    "cache verify": ["c", "--against", "t"],
}


def test_every_command_that_computes_has_the_same_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert {command for command, (_, flags) in SURFACE.items() if "--devices" in flags} == {*COMPUTE}
    lines = set()
    for command in COMPUTE:
        assert run([*command.split(), "--help"]) == 0
        page = " ".join(capsys.readouterr().out.split())
        lines.add(page[(start := page.index("--devices WHICH")) : page.index("[auto]", start)])
    assert len(lines) == 1


@pytest.mark.parametrize("command", COMPUTE)
def test_a_value_that_is_no_device_is_refused_before_anything_is_read(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command.split(), *REQUIRED[command], "--devices", "gpu"]) == 2
    assert "--devices" in (error := capsys.readouterr().err)
    assert "cuda:0,cuda:1" in error


@pytest.mark.parametrize("command", ["plan", "cache-teacher"])
def test_a_teacher_is_not_run_on_an_apple_gpu(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, *REQUIRED[command], "--devices", "mps"]) == 2
    assert "float64" in capsys.readouterr().err


@pytest.mark.parametrize("devices", ["", "cuda:", "cuda:0,", "cuda:0,cuda:0", "cpu,cuda:0", "CPU", "cuda:12345"])
def test_names_of_devices_are_exact_and_different(devices: str) -> None:
    with pytest.raises(ValueError, match=r"device|expected"):
        check_devices(devices)


def test_several_gpus_are_a_list_of_names() -> None:
    assert check_devices("cuda:1,cuda:0") == "cuda:1,cuda:0"
