"""Comparisons of runs: what differs, by how much and how surely, and what cannot be compared."""

from pathlib import Path
from typing import Any

import pytest

from kdpipe.cli.compare import page
from kdpipe.pipeline.compare import CompareRequest
from kdpipe.pipeline.compare import compare as compare_request
from kdpipe.pipeline.evaluation.stored import FINAL, save_tasks
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.train_report import CompareReport, Difference, Evaluation, TaskResults
from support.evaluations import evaluation, run_folder

BASE: dict[str, Any] = {"seed": 0, "out": "a", "losses": {"alpha": 0.1, "select": []}, "optimizer": {"lr": 1e-4}}


def compare(names: list[str]) -> CompareReport:
    return compare_request(CompareRequest(names=names))


def test_only_settings_that_differ_are_reported(tmp_path: Path) -> None:
    one = run_folder(tmp_path / "a", BASE, evaluation())
    other = run_folder(tmp_path / "b", {**BASE, "out": "b", "losses": {"alpha": 1.0}, "seed": 0}, evaluation())
    report = compare([str(one), str(other)])
    assert [run.settings for run in report.runs] == [{"losses.alpha": "0.1"}, {"losses.alpha": "1.0"}]


def test_notes_warn_of_few_documents_and_of_seeds(tmp_path: Path) -> None:
    few, enough = (
        [str(run_folder(tmp_path / f"{name}-{n}", BASE, evaluation_of(n))) for name in ("a", "b")] for n in (19, 20)
    )
    assert [note.startswith("only 19 evaluated documents") for note in compare(few).notes] == [True, False]
    (note,) = compare(enough).notes
    assert "seeds" in note
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
    expected = better.cross_entropy - evaluation().cross_entropy
    assert second.differences["cross_entropy"].value == pytest.approx(expected)
    assert second.differences["cross_entropy"].spread is not None


def test_runs_that_cannot_be_compared_have_a_note(tmp_path: Path) -> None:
    one = run_folder(tmp_path / "a", BASE, evaluation())
    without = run_folder(tmp_path / "b", BASE, None)
    elsewhere = run_folder(tmp_path / "c", BASE, evaluation(split="train"))
    bound = run_folder(tmp_path / "d", BASE, evaluation(kl_teacher_estimate="lower_bound"))
    report = compare([str(run) for run in (one, without, elsewhere, bound)])
    assert [bool(run.differences) for run in report.runs] == [False, False, False, True]
    assert report.runs[1].numbers == {}
    assert f"{without} has no evaluation" in report.notes[0]
    assert str(elsewhere) in report.notes[1] and str(one) in report.notes[1]
    assert "KL" in report.notes[2] and str(bound) in report.notes[2]
    notes = compare([str(without), str(one)]).notes
    assert "the first run has no evaluation" in notes[1]


def test_one_run_and_no_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two"):
        compare([str(tmp_path)])
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        compare([str(tmp_path), str(tmp_path)])
    (tmp_path / "config.json").touch()
    with pytest.raises(ConfigError) as refused:
        compare([str(tmp_path), str(tmp_path)])
    assert refused.value.hint is not None and "--from-cache" in refused.value.hint


def test_the_best_of_each_metric_is_marked_among_students_on_the_same_positions(tmp_path: Path) -> None:
    better = evaluation(cross_entropy=[290.0, 305.0, 280.0, 299.0], agreed=[10, 10, 10, 10], ece=0.04)
    other_positions = evaluation(split="train", cross_entropy=[1.0, 1.0, 1.0, 1.0])
    folders = {"a": evaluation(), "b": better, "c": other_positions}
    runs = compare([str(run_folder(tmp_path / name, BASE, one)) for name, one in folders.items()]).runs
    assert runs[0].best == ("top1_agreement",)
    assert runs[1].best == ("cross_entropy",)
    assert runs[2].best == ()


def test_a_loss_is_best_among_runs_of_one_objective_only(tmp_path: Path) -> None:
    lower = run_folder(tmp_path / "a", BASE, evaluation(loss=1.0))
    higher = run_folder(tmp_path / "b", BASE, evaluation(loss=2.0))
    other = run_folder(tmp_path / "c", {**BASE, "losses": {"alpha": 1.0}}, evaluation(loss=0.5))
    assert [run.best for run in compare([str(run) for run in (lower, higher, other)]).runs] == [("loss",), (), ()]


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("losses.mode", {"losses": {**BASE["losses"], "mode": "output"}}),
        ("losses.temperature", {"losses": {**BASE["losses"], "temperature": 2.0}}),
        ("losses.alpha", {"losses": {**BASE["losses"], "alpha": 0.5}}),
        ("losses.weights.cosine", {"losses": {**BASE["losses"], "weights": {"cosine": 1.0}}}),
        ("run.phases", {"run": {"phases": [{"until": 1.0, "alpha": 0.5}]}}),
    ],
)
def test_losses_of_different_objectives_have_no_difference(tmp_path: Path, name: str, changed: dict[str, Any]) -> None:
    one = run_folder(tmp_path / "a", BASE, evaluation(loss=3.4451))
    other = run_folder(tmp_path / "b", {**BASE, **changed}, evaluation(loss=0.5358))
    report = compare([str(one), str(other)])
    assert [run.numbers["loss"] for run in report.runs] == [3.4451, 0.5358]
    assert [run.same_objective for run in report.runs] == [True, False]
    assert set(report.runs[1].differences) == {"cross_entropy", "kl_teacher", "top1_agreement", "ece"}
    (note,) = [note for note in report.notes if "objective" in note]
    assert name in note
    assert str(other) in note


def test_losses_of_one_objective_have_a_difference_without_an_interval(tmp_path: Path) -> None:
    one = run_folder(tmp_path / "a", BASE, evaluation(loss=1.5))
    other = run_folder(tmp_path / "b", {**BASE, "seed": 1, "optimizer": {"lr": 1e-3}}, evaluation(loss=1.25))
    report = compare([str(one), str(other)])
    assert report.runs[1].differences["loss"] == Difference(value=-0.25, spread=None)
    assert not [note for note in report.notes if "objective" in note]


def test_an_objective_that_changes_by_step_is_the_same_only_at_the_same_step(tmp_path: Path) -> None:
    settings = {**BASE, "losses": {"alpha": 0.1, "alpha_schedule": "wsd"}}
    runs = [
        str(run_folder(tmp_path / f"{step}-{n}", settings, evaluation(step=step))) for n, step in enumerate((9, 9, 7))
    ]
    assert [run.same_objective for run in compare(runs).runs] == [True, True, False]


def test_different_estimates_of_kl_have_no_difference(tmp_path: Path) -> None:
    one = run_folder(tmp_path / "a", BASE, evaluation())
    bound = run_folder(tmp_path / "b", BASE, evaluation(kl_teacher_estimate="lower_bound"))
    assert "kl_teacher" not in compare([str(one), str(bound)]).runs[1].differences


def test_results_of_tasks_are_shown_without_their_errors(tmp_path: Path) -> None:
    runs = [run_folder(tmp_path / name, BASE, evaluation()) for name in ("a", "b")]
    for run, passed in zip(runs, (0.25, 0.5), strict=True):
        (run / FINAL).mkdir()
        metrics = {"humaneval": {"pass@1": passed, "pass@1_stderr": 0.1, "problems": 164.0}}
        save_tasks(run, TaskResults(metrics=metrics, limits={"humaneval": None}))
    save_tasks(runs[1], TaskResults(metrics={"mine": {"acc": 1.0}}, limits={"mine": 3}))
    report = compare([str(run) for run in runs])
    assert [run.tasks for run in report.runs] == [
        {"humaneval pass@1": 0.25},
        {"humaneval pass@1": 0.5, "mine acc": 1.0},
    ]
    assert not [note for note in report.notes if "--limit" in note]
    save_tasks(runs[0], TaskResults(metrics={"mine": {"acc": 0.5}}, limits={"mine": 4}))
    assert [note for note in compare([str(run) for run in runs]).notes if "mine" in note and "--limit" in note]
    cells = [line.split() for line in page(report, columns=120).splitlines()]
    assert [line[-4:] for line in cells if "humaneval" in line] == [["humaneval", "pass@1", "mine", "acc"]]
    assert [line[-2:] for line in cells if line[:1] in (["a"], ["b"])][:2] == [["0.2500", "-"], ["0.5000", "1.0000"]]
