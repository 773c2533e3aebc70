"""The learning rate sweep and related benchmarks run in a small version; the sweep resumes from its results."""

import json
from pathlib import Path
from typing import Any

import pytest

from support.scripts import check_script
from support.stage_two import STUDENT, make_cache

QUICK = ("--quick", "--tokens", "500")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shared folder for teacher and caches."""
    return tmp_path_factory.mktemp("sweep")


def swept(work: Path, *words: str) -> tuple[Any, str]:
    done = check_script("optimizer_sweep", *QUICK, "--work", str(work), "--sizes", "0.1M", *words)
    return json.loads(done.out), done.err


@pytest.mark.slow
def test_the_best_cells_are_repeated_and_stored(work: Path) -> None:
    first, shown = swept(work, "--optimizers", "muon")
    best = first["confirmed"]["0.1M fresh muon"]
    assert len(best) == 3 and best == sorted(best, key=lambda row: row["kl_mean"])
    assert all(row["kl_sd"] >= 0 for row in best)
    assert "Cell(" in shown
    again, shown = swept(work, "--optimizers", "muon")
    assert again == first and "Cell(" not in shown
    table = check_script("optimizer_sweep_table", "--work", str(work)).out
    assert len([line for line in table.splitlines() if line.startswith("| fresh |")]) == 1
    assert f"| {best[0]['kl_mean']:.3f} ± {best[0]['kl_sd']:.3f} |" in table
    result = json.loads(check_script("fused_attention", *QUICK, "--work", str(work), "--seeds", "2").out)
    assert all(len(result[way]["kl"]) == 2 for way in ("whole", "parts")) and result["whole"] != result["parts"]


@pytest.mark.slow
def test_pretrained_and_lora_students_are_swept_too(work: Path) -> None:
    kinds = ("pretrained", "lora")
    first, _ = swept(work, "--optimizers", "adamw", "--confirmed", "1", "--alone", "--kinds", *kinds)
    assert all(len(first["confirmed"][f"0.1M {kind} adamw"]) == 1 for kind in kinds)


@pytest.mark.slow
def test_the_default_is_compared_with_neighboring_cells(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    (tmp_path / "student.json").write_text(json.dumps(STUDENT))
    words = ("--cache", str(cache), "--student", str(tmp_path / "student.json"), "--steps", "2")
    (run,) = json.loads(check_script("default_rates", *words).out)["runs"]
    assert len(run["cells"]) == 12 and run["cells"][0] == run["default"]
    assert run["points_behind"] == pytest.approx(
        100 * (run["best"]["top1_agreement"] - run["default"]["top1_agreement"]), abs=0.1
    )
