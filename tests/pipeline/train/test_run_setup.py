"""What a run shows before its first step, and what a dry run adds; both are in the report as numbers."""

from pathlib import Path

import pytest

from kdpipe.pipeline.training.run_setup import COLUMNS, INDENT
from support.stage_two import RecordingProgress, run, settings_for

LABELS = (
    "student", "teacher", "cache", "loss", "optimizer", "data", "steps", "schedule", "evaluation", "checkpoints",
    "guard",
)  # fmt: skip


def test_a_run_starts_with_what_it_is_about_to_do(folder: Path, tmp_path: Path) -> None:
    progress = RecordingProgress()
    settings = settings_for(folder, optimizer={"kind": "muon"}, losses={"allow_coarse": True, "temperature": 2})
    report = run(settings.model_copy(update={"out": str(tmp_path / "run")}), progress)
    lines = "\n".join(progress.messages).splitlines()
    shown = {label: next(i for i, line in enumerate(lines) if line[:INDENT].strip() == label) for label in LABELS}
    assert list(shown.values()) == sorted(shown.values())
    block = lines[shown["student"] : shown["guard"] + 2]
    assert all(len(line) <= COLUMNS or line.split()[-1].startswith("/") for line in block if str(folder) not in line)
    setup = report.setup
    assert setup is not None
    assert (setup.student.name, setup.student.source, setup.student.precision) == (
        settings.student.name,
        "config",
        "fp32",
    )
    assert setup.student.n_parameters == report.n_parameters
    assert setup.teacher is not None and setup.teacher.n_layers == 2
    assert setup.cache.vocabulary_size == 512 and setup.cache.positions > setup.cache.validation_positions > 0
    assert (setup.temperature, sum(setup.losses.values())) == (2.0, pytest.approx(1))
    assert {name: group.optimizer for name, group in setup.optimizer.groups.items()} == {
        "matrices": "muon",
        "tables": "adamw",
        "vectors": "adamw",
    }
    assert setup.optimizer.groups["matrices"].lr == settings.optimizer.lr
    assert sum(group.n_parameters for group in setup.optimizer.groups.values()) == report.n_trainable
    assert "optimizer.lr" in setup.optimizer.reason and "optimizer.rates.tables" in setup.optimizer.reason
    assert (setup.steps, setup.batch_size, setup.accumulate, setup.warmup_steps) == (6, 4, 2, 1)
    assert (setup.evaluate_every, setup.save_every, setup.guard) == (3, 3, "standard")
    assert lines[shown["schedule"]].endswith("warm-up 1 of 6 steps (17%), decay to 0 of the peak over 5")


def test_a_dry_run_has_shapes_terms_and_learning_rates_of_its_steps(folder: Path, tmp_path: Path) -> None:
    settings = settings_for(folder, machine={"device": "cpu", "threads": 1, "portion": 2})
    report = run(settings.model_copy(update={"out": str(tmp_path / "run")}), dry_run=True)
    dry = report.dry_run
    assert dry is not None and report.setup is not None and report.setup.steps == 6
    assert [step.step for step in dry.steps] == [1, 2, 3, 4, 5]
    for step in dry.steps:
        assert list(step.terms) == ["ce", "forward_kl"]
        assert sum(term.weighted or 0 for term in step.terms.values()) == pytest.approx(step.loss)
    assert dry.steps[0].rates["matrices"] == settings.optimizer.lr  # the warm-up has one step
    assert dry.steps[-1].rates["matrices"] < dry.steps[1].rates["matrices"]
    n_rows, vocabulary = dry.student_shapes["logits"]
    assert dry.student_shapes["input_ids"][0] == 2 and vocabulary == 512
    assert dry.teacher_shapes["token ids"][0] == n_rows == dry.teacher_shapes["log-probabilities"][0]


def test_hidden_states_have_shapes_in_a_dry_run(folder: Path, tmp_path: Path) -> None:
    losses = {"allow_coarse": True, "weights": {"cosine": 0.1}}
    report = run(settings_for(folder, losses=losses).model_copy(update={"out": str(tmp_path / "run")}), dry_run=True)
    assert report.dry_run is not None
    names = [name for name in report.dry_run.student_shapes if name.startswith("hidden states")]
    assert names and all(len(report.dry_run.student_shapes[name]) == 3 for name in names)
    assert any(name.startswith(("hidden states", "pooled states")) for name in report.dry_run.teacher_shapes)
