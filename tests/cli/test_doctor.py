"""`kdpipe doctor`: lines, JSON and exit codes, for the machine and for a run."""

import json
import socket
from pathlib import Path

import pytest
import torch

from kdpipe.cli.doctor import line
from kdpipe.cli.main import run
from kdpipe.pipeline import doctor
from kdpipe.pipeline.diagnosis import gpus, machine
from kdpipe.schemas.doctor_report import passed, problem


def test_a_line_fits_the_terminal() -> None:
    text = line(problem("file system", "word " * 40, "what to do " * 20))
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith("problem  file system")


def test_the_machine_is_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "hub", lambda: passed("hub", "reachable"))
    assert run(["doctor", "--out", str(tmp_path / "new"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    assert {"versions", "cores", "file system", "disk space", "extras", "hub", "devices"} <= {
        check["name"] for check in report["checks"]
    }
    assert not list(tmp_path.iterdir())


def test_a_problem_ends_with_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "check_run", lambda folder: [problem("loss", "not falling", "lower --lr")])
    assert run(["doctor", "run"]) == 1
    assert "lower --lr" in capsys.readouterr().out


def test_a_closed_port_is_an_unreachable_hub() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        assert machine.hub(server.getsockname(), 1.0).level == "warning"


def test_a_file_system_without_links_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    (check,) = machine.file_system(tmp_path)
    assert (check.level, "link" in check.what) == ("problem", True)


def test_an_old_gpu_under_a_new_build_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr(gpus, "run_kernel", refuse)
    for name, value in {
        "device_count": 1, "get_device_name": "Tesla V100", "get_device_capability": (7, 0),
        "get_arch_list": ["sm_75", "sm_90"],
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    (check,) = gpus.gpus()
    assert check.level == "problem"
    assert "cu126" in check.do
