"""The benchmark of the guard runs, and its ratios are those that the guard uses."""

import json
from pathlib import Path

import pytest

from support.scripts import check_script
from support.stage_two import make_cache


@pytest.mark.slow
def test_the_benchmark_of_the_guard_runs(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    more = ["--work", str(tmp_path / "work"), "--seeds", "1", "--steps", "20"]
    done = check_script("guard", "hybrid", "phases", "--cache", str(cache), *more)
    runs = json.loads(done.out)["runs"]
    assert [(run["recipe"], run["optimizer"]) for run in runs] == [
        (recipe, kind) for recipe in ("hybrid", "phases") for kind in ("adamw", "muon")
    ]
    # Without phases there is only the settled window.
    assert all(run["ratio"] > 0 and run["bare"] == 0 for run in runs[:2])
    assert all(run["bare"] > 0 for run in runs[2:])
