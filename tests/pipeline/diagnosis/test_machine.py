"""Checks of the machine: cores, memory, extras, hub and devices, each with a fault."""

import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from kdpipe.pipeline.diagnosis import device_checks, machine
from kdpipe.pipeline.diagnosis import hub as hub_check
from kdpipe.pipeline.diagnosis.hub import hub
from kdpipe.pipeline.models import process_limits
from kdpipe.schemas.doctor_report import Check

GIB = 1 << 30


def test_a_busy_machine_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cpus", lambda: 2)
    for load, level in ((2.5, "ok"), (9.0, "warning")):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert machine.cores().level == level


def test_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "container_memory", lambda: [GIB])
    for free, level in ((GIB, "warning"), (8 * GIB, "ok"), (None, "ok")):
        monkeypatch.setattr(machine, "usable_memory", lambda free=free: free)
        check = machine.memory()
        assert check.level == level
        assert ("container" in check.what) == (free == GIB)


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/", {}, 8 * GIB),
        ("0::/", {"memory.max": "max", "memory.current": "5"}, 8 * GIB),
        ("0::/", {"memory.max": str(4 * GIB), "memory.current": str(GIB)}, 3 * GIB),
        ("0::/", {"memory.max": str(4 * GIB), "memory.current": str(5 * GIB)}, 0),
        ("0::/", {"memory.max": str(64 * GIB), "memory.current": "0"}, 8 * GIB),
        (
            "0::/job",
            {
                "memory.max": str(2 * GIB),
                "memory.current": str(2 * GIB),
                "memory.stat": f"anon 1\ninactive_file {GIB}",
                "job/memory.max": "max",
            },
            GIB,
        ),
        (
            "4:cpu:/\n7:memory:/job",
            {"memory/job/memory.limit_in_bytes": str(3 * GIB), "memory/job/memory.usage_in_bytes": str(GIB)},
            2 * GIB,
        ),
        ("7:memory:/", {"memory/memory.limit_in_bytes": str(1 << 63), "memory/memory.usage_in_bytes": "1"}, 8 * GIB),
        ("not a line", {"memory.max": "1", "memory.current": "0"}, 8 * GIB),
    ],
)
def test_the_limit_of_a_container_bounds_the_memory(
    groups: str, files: dict[str, str], expected: int, tmp_path: Path
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups + "\n")
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:   {8 * GIB // 1024} kB\n")
    for name, text in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    assert process_limits.usable_memory(tmp_path) == expected


def test_memory_is_unknown_without_proc(tmp_path: Path) -> None:
    assert process_limits.usable_memory(tmp_path) is None


def test_a_missing_library_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LIBRARIES", ("kdpipe", "no-such-library"))
    check = machine.versions()
    assert check.level == "problem" and "no-such-library" in check.what


def test_each_missing_extra_has_a_line_with_its_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_is_missing", lambda module: module in ("s3fs", "bitsandbytes"))
    installed, *missing = machine.extras()
    assert [check.do for check in missing] == ["pip install 'kdpipe[s3]'", "pip install 'kdpipe[quant]'"]
    assert "large" in installed.what and "quant" not in installed.what


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.getproxies", dict)


@pytest.mark.usefixtures("no_proxy")
def test_the_hub_is_reachable_at_its_endpoint() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        check = hub({"HF_ENDPOINT": f"http://{address}"})
    assert check.level == "ok" and address in check.what


@pytest.mark.usefixtures("no_proxy")
def test_a_closed_port_is_an_unreachable_hub() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        check = hub({"HF_ENDPOINT": f"http://127.0.0.1:{bound.getsockname()[1]}"})
    assert check.level == "warning" and check.do


@pytest.mark.usefixtures("no_proxy")
def test_a_lookup_without_an_answer_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang(*_: Any, **__: Any) -> list[Any]:
        release.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        check = hub({}, seconds=0.05)
    finally:
        release.set()
    assert check.level == "warning" and "DNS" in check.what and "huggingface.co" in check.what


@pytest.mark.usefixtures("no_proxy")
def test_a_failed_lookup_names_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    check = hub({})
    assert check.level == "warning" and "Name or service not known" in check.what


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_nothing_is_connected_to_offline(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_check, "_connect", lambda *_: pytest.fail("connected"))
    check = hub({name: "1"})
    assert check.level == "ok" and name in check.what


@pytest.mark.parametrize("endpoint", ["huggingface.co", "https://", "ftp://host", "https://host:port"])
def test_a_wrong_endpoint_is_a_problem(endpoint: str) -> None:
    check = hub({"HF_ENDPOINT": endpoint})
    assert check.level == "problem" and endpoint in check.what


def test_a_proxy_is_what_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    connected = []
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "user:secret@proxy.local:3128"})
    monkeypatch.setattr("urllib.request.proxy_bypass", lambda _host: False)
    monkeypatch.setattr(hub_check, "_connect", lambda host, port, seconds: connected.append((host, port)))
    check = hub({})
    assert connected == [("proxy.local", 3128)]
    assert "proxy.local:3128" in check.what and "secret" not in check.what


def simulate_gpu(monkeypatch: pytest.MonkeyPatch, error: Exception | None, **values: Any) -> list[Check]:
    """The checks of a machine with one GPU whose kernels raise an error."""

    def run_kernel(_device: torch.device) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(device_checks, "run_kernel", run_kernel)
    gpu = {
        "device_count": 1,
        "get_device_name": "Tesla V100",
        "get_device_capability": (7, 0),
        "get_arch_list": ["sm_75", "sm_90"],
        "mem_get_info": (8 * 10**9, 16 * 10**9),
        "is_bf16_supported": True,
    }
    for name, value in (gpu | values).items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    return device_checks.check_devices()


def test_an_old_gpu_under_a_new_build_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("CUDA error: no kernel image is available for execution on the device")
    (check,) = simulate_gpu(monkeypatch, error)
    assert check.level == "problem" and "sm_70" in check.what
    assert "pip install 'torch<2.15' --index-url https://download.pytorch.org/whl/cu126" in check.do


def test_a_newer_gpu_than_the_build_needs_a_newer_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("CUDA error: no kernel image is available for execution on the device")
    (check,) = simulate_gpu(monkeypatch, error, get_device_capability=(13, 0))
    assert check.level == "problem" and "pip install -U torch" in check.do


def test_a_full_gpu_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    (check,) = simulate_gpu(monkeypatch, torch.OutOfMemoryError("CUDA out of memory"))
    assert check.level == "problem" and "memory" in check.what


@pytest.mark.parametrize(("capability", "dtype"), [((9, 0), "bfloat16"), ((7, 5), "float16")])
def test_a_gpu_that_runs_kernels_shows_memory_and_data_type(
    capability: tuple[int, int], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (check,) = simulate_gpu(monkeypatch, None, get_device_capability=capability)
    assert check.level == "ok" and "8.0 GB of 16.0 GB" in check.what and dtype in check.what


@pytest.mark.parametrize(("cuda", "do"), [(None, "pip install --force-reinstall torch"), ("12.8", "nvidia-smi")])
def test_a_driver_without_a_gpu_in_torch_is_a_warning(
    cuda: str | None, do: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_checks, "DRIVER", tmp_path)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    (check,) = simulate_gpu(monkeypatch, None, device_count=0)
    assert check.level == "warning" and do in check.do
