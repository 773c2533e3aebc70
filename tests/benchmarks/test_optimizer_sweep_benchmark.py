"""The sweep of learning rates runs, small, and resumes from the results that it kept."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.source import ROOT

SCRIPT = ROOT / "benchmarks" / "optimizer_sweep.py"


def swept(work: Path) -> tuple[Any, str]:
    words = ["--quick", "--work", str(work), "--sizes", "0.1M", "--optimizers", "muon", "--tokens", "500"]
    done = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=True)
    return json.loads(done.stdout), done.stderr


@pytest.mark.slow
def test_the_best_cells_are_confirmed_and_kept(tmp_path: Path) -> None:
    first, shown = swept(tmp_path)
    best = first["best"]["0.1M muon"]
    assert len(best) == 3 and best == sorted(best, key=lambda row: row["kl_mean"])
    assert all(row["kl_sd"] >= 0 for row in best)
    assert "Cell(" in shown
    again, shown = swept(tmp_path)
    assert again["best"] == first["best"] and "Cell(" not in shown
