"""The benchmark of losses on hidden states runs in its small version and prints its keys."""

import json
from pathlib import Path

import pytest

from support.scripts import check_script


@pytest.mark.slow
def test_a_loss_is_compared_with_the_same_run_without_it(tmp_path: Path) -> None:
    done = check_script("hidden_losses", "--quick", "--work", str(tmp_path), "mse", "router")
    answer = json.loads(done.out)
    assert set(answer["losses"]) == {"none", "mse", "router"}
    result = answer["losses"]["mse"]
    assert result["own_with"]["mean"] > 0
    assert result["own_without"]["mean"] > 0
    assert set(result["difference"]) == {"cross_entropy", "kl_teacher", "top1_agreement"}
    assert sum(one["mean"] for one in answer["losses"]["router"]["mixture"].values()) == pytest.approx(2, abs=1e-3)
    assert "| mse | 1 |" in done.err
