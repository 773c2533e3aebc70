"""Runs beside each other: what differs, by how much and how surely, and what cannot be compared."""

from pathlib import Path

import pytest

from kdpipe.pipeline.compare import compare
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.train_report import Evaluation
from support.evaluations import evaluation, run_folder

BASE = {"seed": 0, "out": "a", "losses": {"alpha": 0.1, "select": []}, "optimizer": {"lr": 1e-4}}


def test_settings_that_differ_are_told_and_others_are_not(tmp_path: Path) -> None:
    one = run_folder(tmp_path / "a", BASE, evaluation())
    other = run_folder(tmp_path / "b", {**BASE, "out": "b", "losses": {"alpha": 1.0}, "seed": 0}, evaluation())
    found = compare([str(one), str(other)])
    assert [run.settings for run in found.runs] == [{"losses.alpha": "0.1"}, {"losses.alpha": "1.0"}]


def test_the_notes_say_what_intervals_rest_on(tmp_path: Path) -> None:
    few, enough = (
        [str(run_folder(tmp_path / f"{name}-{n}", BASE, evaluation_of(n))) for name in ("a", "b")] for n in (19, 20)
    )
    assert [note.startswith("only 19 evaluated documents") for note in compare(few).notes] == [True, False]
    (about,) = compare(enough).notes
    assert "about these students, not about their recipes" in about
    assert [run.documents for run in compare(enough).runs] == [20, 20]


def evaluation_of(n: int) -> Evaluation:
    """An evaluation of so many documents."""
    return evaluation(
        cross_entropy=[300.0 + i for i in range(n)],
        kl_teacher=None,
        agreed=[50] * n,
        numbers=tuple(range(n)),
        positions=(100,) * n,
    )


def test_numbers_and_differences_are_those_of_the_evaluations(tmp_path: Path) -> None:
    better = evaluation(cross_entropy=[290.0, 305.0, 280.0, 299.0], loss=1.0, step=12)
    one, other = run_folder(tmp_path / "a", BASE, evaluation()), run_folder(tmp_path / "b", BASE, better)
    first, second = compare([str(one), str(other)]).runs
    assert first.differences == {}
    assert second.numbers["cross_entropy"] == better.cross_entropy
    assert second.numbers["loss"] == 1.0
    assert (second.step, second.positions) == (12, 400)
    due = better.cross_entropy - evaluation().cross_entropy
    assert second.differences["cross_entropy"].value == pytest.approx(due)
    assert second.differences["cross_entropy"].spread is not None


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    one = run_folder(tmp_path / "a", BASE, evaluation())
    without = run_folder(tmp_path / "b", BASE, None)
    elsewhere = run_folder(tmp_path / "c", BASE, evaluation(split="train"))
    bound = run_folder(tmp_path / "d", BASE, evaluation(kl_teacher_estimate="lower_bound"))
    found = compare([str(run) for run in (one, without, elsewhere, bound)])
    assert [bool(run.differences) for run in found.runs] == [False, False, False, True]
    assert found.runs[1].numbers == {}
    assert f"{without} has no evaluation" in found.notes[0]
    assert f"{elsewhere} was evaluated on other positions than {one}" in found.notes[1]
    assert f"KL to the teacher is not the same kind of estimate in {bound}" in found.notes[2]
    notes = compare([str(without), str(one)]).notes
    assert "the first run has no evaluation" in notes[1]


def test_one_run_and_no_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one run cannot be compared"):
        compare([str(tmp_path)])
    with pytest.raises(ConfigError, match=r"is no folder of a run: it has no config.yaml"):
        compare([str(tmp_path), str(tmp_path)])
