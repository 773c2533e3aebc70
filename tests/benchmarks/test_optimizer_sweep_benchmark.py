"""The sweep of learning rates and what is measured beside it run, small; the sweep resumes from the results it kept."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.source import ROOT
from support.stage_two import STUDENT, make_cache

BENCHMARKS = ROOT / "benchmarks"
QUICK = ("--quick", "--tokens", "500")


def printed(name: str, *words: str) -> tuple[str, str]:
    script = [sys.executable, str(BENCHMARKS / f"{name}.py")]
    done = subprocess.run([*script, *words], capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


def swept(work: Path) -> tuple[Any, str]:
    out, shown = printed("optimizer_sweep", *QUICK, "--work", str(work), "--sizes", "0.1M", "--optimizers", "muon")
    return json.loads(out), shown


@pytest.mark.slow
def test_the_best_cells_are_confirmed_and_kept(tmp_path: Path) -> None:
    first, shown = swept(tmp_path)
    best = first["confirmed"]["0.1M fresh muon"]
    assert len(best) == 3 and best == sorted(best, key=lambda row: row["kl_mean"])
    assert all(row["kl_sd"] >= 0 for row in best)
    assert "Cell(" in shown
    again, shown = swept(tmp_path)
    assert again == first and "Cell(" not in shown
    table, _ = printed("optimizer_sweep_table", "--work", str(tmp_path))
    assert len([line for line in table.splitlines() if line.startswith("| fresh |")]) == 1
    assert f"| {best[0]['kl_mean']:.3f} ± {best[0]['kl_sd']:.3f} |" in table
    out, _ = printed("fused_attention", *QUICK, "--work", str(tmp_path), "--seeds", "2")
    found = json.loads(out)
    assert all(len(found[way]["kl"]) == 2 for way in ("whole", "parts")) and found["whole"] != found["parts"]


@pytest.mark.slow
@pytest.mark.timeout(580)
def test_students_that_were_trained_before_are_swept_too(tmp_path: Path) -> None:
    words = (*QUICK, "--work", str(tmp_path), "--sizes", "0.1M", "--optimizers", "adamw", "--confirmed", "1")
    for kind in ("pretrained", "lora"):
        out, _ = printed("optimizer_sweep", *words, "--kinds", kind)
        assert len(json.loads(out)["confirmed"][f"0.1M {kind} adamw"]) == 1


@pytest.mark.slow
@pytest.mark.timeout(580)
def test_the_default_is_held_against_the_cells_around_it(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    (tmp_path / "student.json").write_text(json.dumps(STUDENT))
    out, _ = printed(
        "default_rates", "--cache", str(cache), "--student", str(tmp_path / "student.json"), "--steps", "2"
    )
    (run,) = json.loads(out)["runs"]
    assert len(run["cells"]) == 12 and run["cells"][0] == run["default"]
    assert run["points_behind"] == pytest.approx(
        100 * (run["best"]["top1_agreement"] - run["default"]["top1_agreement"]), abs=0.1
    )
