"""The recovery benchmark runs in its small version, resumes with missing students, and computes its shares."""

import json
from pathlib import Path
from typing import Any

import pytest

from support.scripts import check_script
from support.source import ROOT

KINDS = ["labels alone", "dense", "standard", "tau 0.2", "alpha 0.3", "bucket", "renormalized"]


def answer(work: Path, *words: str) -> tuple[Any, str]:
    """The output and the progress of a small run."""
    done = check_script("recovery", "--quick", "--work", str(work), *words)
    return json.loads(done.out), done.err


@pytest.mark.slow
def test_students_of_every_kind_are_compared_with_labels_and_dense(tmp_path: Path) -> None:
    few = ("--seeds", "1", "--passes", "1", "--kinds", *KINDS)
    first, progress = answer(tmp_path, *few)
    assert "7 of 7" in progress
    kinds = first["passes"]["1"]["kinds"]
    tops = sorted(set(kinds) - set(KINDS))
    assert [name.split(maxsplit=1)[1] for name in tops] == ["and one bin", "renormalized"]
    assert all(name.startswith("top-") for name in tops)
    assert kinds["labels alone"]["kl_teacher_recovered"]["mean"] == 0
    assert kinds["dense"]["kl_teacher_recovered"]["mean"] == 1
    assert kinds["dense"]["ece_over_dense_points"]["mean"] == 0
    assert kinds["dense"]["kl_teacher_recovered"]["half_interval"] is None and kinds["dense"]["seeds"] == 1
    assert len(first["passes"]["1"]["steps"]) == len(first["passes"]["1"]["positions"]) == 1
    assert "muon" in first["passes"]["1"]["optimizer"][0]
    assert kinds["tau 0.2"]["bytes_per_position"] < kinds["standard"]["bytes_per_position"]
    assert kinds["alpha 0.3"]["bytes_per_position"] == kinds["standard"]["bytes_per_position"]
    assert kinds["alpha 0.3"]["kl_teacher"] != kinds["standard"]["kl_teacher"]
    assert kinds[tops[0]]["bytes_per_position"] == pytest.approx(kinds["standard"]["bytes_per_position"], rel=0.1)

    results = next(tmp_path.glob("*/results-*.jsonl"))
    lines = results.read_text(encoding="utf-8").splitlines(keepends=True)
    results.write_text("".join(lines[:-1]) + lines[-1][:20], encoding="utf-8")
    teacher = str(next(tmp_path.glob("trained-*-5")))
    again, progress = answer(tmp_path, *few)
    assert "dropped an incomplete result" in progress
    assert progress.count(" of 7: ") == 1 and "7 of 7" in progress
    for kind in kinds:
        assert again["passes"]["1"]["kinds"][kind]["kl_teacher"] == kinds[kind]["kl_teacher"]

    given, progress = answer(
        tmp_path / "given", "--teacher-folder", teacher, "--seeds", "2", "--passes", "2", "--kinds", "lean"
    )
    assert "6 of 6" in progress
    assert set(given["passes"]["2"]["kinds"]) == {"labels alone", "dense", "lean"}
    assert given["passes"]["2"]["kinds"]["lean"]["kl_teacher_recovered"]["half_interval"] > 0


def test_recovered_gain_is_computed_seed_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from recovery_table import recovered

    def line(kind: str, seed: int, value: float, ece: float) -> dict[str, Any]:
        return {
            "kind": kind,
            "seed": seed,
            "cross_entropy": value,
            "kl_teacher": value,
            "top1_agreement": 0.5,
            "ece": ece,
        }

    lines = [
        line("labels", 0, 4.0, 0.05),
        line("labels", 1, 5.0, 0.05),
        line("dense", 1, 3.0, 0.01),
        line("dense", 0, 3.0, 0.02),
        line("ours", 0, 3.1, 0.03),
        line("ours", 1, 3.1, 0.015),
    ]
    result = recovered(lines, "labels", "dense")["ours"]
    assert result["cross_entropy_recovered"]["mean"] == pytest.approx((0.9 + 0.95) / 2)
    assert result["cross_entropy_recovered"]["sd"] == pytest.approx(0.05 / 2**0.5)
    # The 95 % quantile of Student's t with one degree of freedom is 6.314.
    assert result["cross_entropy_recovered"]["half_interval"] == pytest.approx(6.314 * 0.05 / 2, rel=1e-3)
    assert result["ece_over_dense_points"]["mean"] == pytest.approx((1.0 + 0.5) / 2)
