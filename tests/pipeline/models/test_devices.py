"""Devices are believed after a kernel, number types follow them, and weights go where there is room."""

import os
from pathlib import Path

import pytest
import torch

from kdpipe.pipeline.models import devices
from kdpipe.schemas.errors import ConfigError

CPU = torch.device("cpu")
GIB = 1 << 30


def cards(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let torch see GPUs that pass their test."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(devices, "run_kernel", lambda device: None)


def broken_card(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    cards(monkeypatch, 1)

    def fail(device: torch.device) -> None:
        raise error

    monkeypatch.setattr(devices, "run_kernel", fail)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla P100-PCIE-16GB")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90"])


@pytest.mark.parametrize(
    ("requested", "found"), [("auto", [0]), ("all", [0, 1, 2]), ("cuda:2", [2]), ("cuda:2,cuda:0", [2, 0])]
)
def test_gpus_are_chosen_by_their_words(requested: str, found: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    cards(monkeypatch, 3)
    assert devices.choose(requested) == [torch.device("cuda", number) for number in found]
    assert devices.choose("cpu") == [CPU]
    assert devices.choose("cuda") == [torch.device("cuda", 0)]
    with pytest.raises(ConfigError, match="--devices gpu"):
        devices.choose("gpu")
    assert devices.choose_one("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match="cuda:0, cuda:1, cuda:2"):
        devices.choose_one("all")
    with pytest.raises(ConfigError, match=r"mps"):
        devices.choose("mps")


def test_without_a_gpu_auto_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cards(monkeypatch, 0)
    assert devices.choose("auto") == [CPU]
    with pytest.raises(ConfigError, match="torch sees none"):
        devices.choose("all")


def test_a_gpu_that_is_not_there_is_named_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    cards(monkeypatch, 2)
    with pytest.raises(ConfigError, match=r"cuda:2 .*torch sees 2 GPUs") as caught:
        devices.choose("cuda:2")
    assert "cuda:0 to cuda:1" in str(caught.value.hint)


def test_a_card_that_runs_no_kernel_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    broken_card(monkeypatch, RuntimeError("CUDA error: no kernel image is available\nmore"))
    with pytest.raises(ConfigError, match=r"Tesla P100-PCIE-16GB \(sm_60\) .*sm_75, sm_90") as caught:
        devices.choose("auto")
    assert "torch<2.15" in str(caught.value.hint)
    assert "cu126" in str(caught.value.hint)


def test_a_full_gpu_is_reported_as_full(monkeypatch: pytest.MonkeyPatch) -> None:
    broken_card(monkeypatch, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(ConfigError, match="cuda:0 has no free memory"):
        devices.choose("cuda:0")


def test_a_card_newer_than_the_build_needs_a_newer_build() -> None:
    error = devices.unusable("B300", (10, 3), ["sm_80", "sm_90"], "no kernel image")
    assert "pip install -U torch" in str(error.hint)
    assert "nvidia-smi" in str(devices.unusable("A100", (8, 0), ["sm_80"], "unspecified launch failure").hint)


def test_the_test_kernel_runs_on_the_cpu_too() -> None:
    devices.run_kernel(CPU)


@pytest.mark.parametrize(
    ("supported", "capability", "name"),
    [(True, (8, 0), "bfloat16"), (True, (7, 5), "float16"), (False, (9, 0), "float16")],
)
def test_a_gpu_computes_in_bfloat16_where_it_really_does(
    supported: bool, capability: tuple[int, int], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert devices.choose_dtype("auto", torch.device("cuda", 0)) == name


def test_the_cpu_computes_in_float32_by_default() -> None:
    assert devices.choose_dtype("auto", CPU) == "float32"
    assert devices.choose_dtype("bfloat16", CPU) == "bfloat16"


@pytest.mark.parametrize(
    ("weights", "free", "cpu", "kind"),
    [
        (8, [10], 0, "one"),
        (8, [10, 10], 0, "one"),
        (9, [10, 10], 0, "spread"),
        (16, [10, 10], 100, "spread"),
        (17, [10, 10], 100, "offloaded"),
        (96, [10, 10], 100, "offloaded"),
    ],
)
def test_weights_go_where_there_is_room(weights: int, free: list[int], cpu: int, kind: str) -> None:
    found = devices.place(weights * GIB, [n * GIB for n in free], cpu * GIB)
    assert found.kind == kind
    room = {"one": 0, "spread": sum(free), "offloaded": sum(free) + cpu}[kind]
    assert sum(found.max_memory.values()) == pytest.approx(0.8 * room * GIB, abs=9)


def test_weights_without_room_anywhere_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"97\.0 GiB; 2 devices .* 96\.0 GiB"):
        devices.place(97 * GIB, [10 * GIB, 10 * GIB], 100 * GIB)


def test_threads_are_those_requested_or_those_of_the_process() -> None:
    assert devices.n_threads(3) == 3
    assert devices.n_threads(None) == devices.usable_cpus() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("groups", "files", "due"),
    [
        ("0::/", {}, 8),
        ("0::/", {"cpu.max": "max 100000"}, 8),
        ("0::/", {"cpu.max": "300000 100000"}, 3),
        ("0::/", {"cpu.max": "150000 100000"}, 1),
        ("0::/", {"cpu.max": "20000 100000"}, 1),
        ("0::/", {"cpu.max": "6400000 100000"}, 8),
        ("0::/", {"cpu.max": "nonsense"}, 8),
        ("0::/slice/job", {"slice/cpu.max": "200000 100000", "slice/job/cpu.max": "max 100000"}, 2),
        ("0::/not/mounted", {"cpu.max": "400000 100000"}, 4),
        ("3:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ("3:cpu:/job\n1:memory:/", {"cpu/job/cpu.cfs_quota_us": "500000", "cpu/job/cpu.cfs_period_us": "100000"}, 5),
        ("2:memory:/\n4:cpuset:/", {"cpu/cpu.cfs_quota_us": "1", "cpu/cpu.cfs_period_us": "1"}, 8),
        ("not a line", {"cpu.max": "100000 100000"}, 8),
    ],
)
def test_a_container_s_quota_of_time_bounds_the_cpus(
    groups: str, files: dict[str, str], due: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(8)))
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups + "\n")
    for name, text in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    assert devices.usable_cpus(tmp_path) == due


def test_without_control_groups_the_cpus_are_those_that_may_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert devices.usable_cpus(tmp_path) == 1


def test_the_free_memory_of_the_cpu_is_that_of_the_system() -> None:
    assert 1 << 20 < devices.free_memory(CPU) < 1 << 50
