"""The benchmark of many epochs runs and resumes; its two countermeasures change only the intended targets."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kdpipe.pipeline.batches.micro_batch import Targets
from support.scripts import check_script
from support.source import ROOT


@pytest.mark.slow
def test_students_are_measured_in_training_and_validation(tmp_path: Path) -> None:
    def answer(*words: str) -> tuple[Any, str]:
        done = check_script("epochs", "--quick", "--work", str(tmp_path), *words)
        return json.loads(done.out), done.err

    first, _ = answer("--targets", "state", "lean, 2 sets")
    assert [(row["targets"], row["epochs"]) for row in first["rows"]] == [
        ("state", 1),
        ("lean, 2 sets", 1),
        ("state", 2),
        ("lean, 2 sets", 2),
    ]
    dense = first["rows"][0]
    assert dense["train_kl"] == dense["train_kl_by_draws"] != dense["validation_kl"]
    more, progress = answer("--targets", "state", "lean, 2 sets", "lean", "standard, 0.3 of the tail prior")
    assert progress.count("Student(") == 4
    assert [row for row in more["rows"] if row["targets"] in ("state", "lean, 2 sets")] == first["rows"]
    once, twice = ({row["targets"]: row for row in more["rows"] if row["epochs"] == n} for n in (1, 2))
    one_set, two_sets = (once[name]["bytes_per_position"] for name in ("lean", "lean, 2 sets"))
    assert one_set < two_sets < 2 * one_set
    # The second set is used from the second epoch on.
    assert once["lean"]["train_kl"] == once["lean, 2 sets"]["train_kl"]
    assert twice["lean"]["train_kl"] != twice["lean, 2 sets"]["train_kl"]


def test_the_prior_takes_its_share_of_the_tail_and_no_id_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from epoch_cures import with_prior

    # One exact id and two draws; one exact id and no tail, repeated in the unused slots.
    targets = Targets(
        ids_NK=torch.tensor([[4, 1, 2], [3, 3, 3]]),
        weights_NK=torch.tensor([[0.6, 0.2, 0.2], [1.0, 0.0, 0.0]]),
        logprobs_NK=torch.tensor([[0.6, 0.0, 0.0], [1.0, 0.0, 0.0]]).log(),
        count_N=torch.tensor([3, 1]),
        n_exact_N=torch.tensor([1, 1]),
        log_tail_N=torch.tensor([0.4, 0.0]).log(),
    )
    mixed = with_prior(targets, torch.tensor([[4, 0, 7, 0, 1], [5, 6, 7, 0, 1]]), 0.25)
    assert mixed.count_N.tolist() == [5, 1]
    assert mixed.ids_NK[0].tolist() == [4, 1, 2, 0, 7] and set(mixed.ids_NK[1].tolist()) == {3}
    assert mixed.weights_NK[0].tolist() == pytest.approx([0.6, 0.15, 0.15, 0.05, 0.05])
    assert mixed.weights_NK[1].tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert mixed.n_exact_N.tolist() == [1, 1]
