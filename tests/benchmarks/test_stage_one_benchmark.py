"""The benchmark of stage one runs in its small version, and its angles are correct."""

import json
from pathlib import Path
from typing import Any

import pytest

from support.scripts import check_script, run_script


def answer(work: Path, *words: str) -> Any:
    """The output of a small run."""
    return json.loads(check_script("stage_one", "--quick", "--threads", "1", "--work", str(work), *words).out)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shared folder for teachers."""
    return tmp_path_factory.mktemp("stage-one")


@pytest.mark.slow
def test_caching_is_compared_with_the_bare_forward_pass(work: Path) -> None:
    result = answer(work, "overhead")["overhead"]
    assert result["positions"] > 1000
    assert result["caching_over_bare"] > 0
    assert result["caching_over_bare_of_cpu"] > 0
    assert len(result["rounds"]) == 1
    steps, beside = result["profile"]["steps"], result["profile"]["beside"]
    assert all(steps[name] > 0 for name in ("layers", "head", "reduction", "fidelity", "hidden summaries", "block"))
    assert sum(steps.values()) == pytest.approx(result["profile"]["seconds"], rel=1e-2)
    assert all(clocks["cpu_seconds"] > 0 for clocks in beside.values())
    assert result["memory"]["cache"]["added_bytes"] > 0


@pytest.mark.slow
def test_bytes_and_angles_come_from_caches_of_the_same_documents(work: Path) -> None:
    result = answer(work, "bytes", "angle", "--entropy-nats", "3")
    assert set(result["bytes"]) == {"lean", "standard", "fine", "top-64", "50 draws"}
    assert len({kind["positions"] for kind in result["bytes"].values()}) == 1
    for kind in result["bytes"].values():
        per = kind["bytes_per_position"]
        sizes = [size for name, size in per.items() if name not in ("total", "text")]
        assert sum(sizes) == pytest.approx(per["total"], rel=1e-3)
        assert kind["fidelity"]["rows"] > 0
        assert kind["entropy_nats"] == pytest.approx(3, abs=0.5)
    angle = result["angle"]
    assert angle["largest_label_difference_nats"] < 0.05
    lean, standard, fine, top, draws = angle["caches"]
    assert 0 < angle["degrees"][fine] < angle["degrees"][standard] < angle["degrees"][lean] < 90
    smallest = angle["caches"][standard]["bytes_per_position"]["total"]
    assert top.endswith("and one bin") and draws.endswith("draws")
    assert all(angle["caches"][name]["bytes_per_position"]["total"] >= smallest for name in (top, draws))


@pytest.mark.slow
def test_twice_the_data_is_cached_in_a_separate_process(work: Path) -> None:
    result = answer(work, "scaling")["scaling"]
    assert result["ratio"]["seconds"] > 0 and result["ratio"]["cpu_seconds"] > 0
    assert result["twice"]["peak_bytes"] > result["once"]["added_bytes"] > 0


def test_an_unknown_measurement_is_refused() -> None:
    done = run_script("stage_one", "speed")
    assert done.code == 2
    assert "unknown measurement speed; available: overhead, bytes, angle, scaling" in done.err
