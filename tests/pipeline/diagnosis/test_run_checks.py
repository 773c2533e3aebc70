"""Every finding about a run, on a real run of a tiny student with that fault; healthy runs have none."""

import itertools
import json
import signal
import types
from pathlib import Path
from typing import Any

import pytest

from kdpipe.cache.durable.lock import locked
from kdpipe.pipeline.batches import prefetch
from kdpipe.pipeline.diagnosis.run_checks import FEW_STEPS, check_run
from kdpipe.pipeline.training import coarse_targets, step_log
from kdpipe.schemas.doctor_report import Check
from kdpipe.schemas.errors import ConfigError, Interrupted, KdpipeError
from support.recording import RecordingProgress
from support.stage_two import Stopping, make_cache, run, settings_for

N_STEPS = 40
# Depends on the speed of the machine, and is checked in a run with a simulated clock.
TIMED = {"data"}


def trained(
    folder: Path, out: Path, progress: RecordingProgress | None = None, cache: str = "cache", **changes: dict[str, Any]
) -> Path:
    """A run of 40 steps of 4 sequences with two evaluations; `changes` by section."""
    sections: dict[str, dict[str, Any]] = {
        "run": {"max_steps": N_STEPS, "accumulate": 1},
        "evaluation": {"every": 20},
        "saving": {"every": 20},
    }
    for section, values in changes.items():
        sections[section] = sections.get(section, {}) | values
    run(settings_for(folder, str(out), kept=cache, **sections), progress)
    return out


def findings(out: Path) -> dict[str, Check]:
    return {check.name: check for check in check_run(out) if check.level != "ok" and check.name not in TIMED}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"losses": {"mode": "output"}, "schedule": {"kind": "linear", "floor": 0.1}},
        {"losses": {"alpha_schedule": "wsd"}, "schedule": {"kind": "wsd"}, "optimizer": {"kind": "muon"}},
        {"losses": {"weights": {"cosine": 0.5}}},
        {"run": {"phases": [{"until": 0.2, "alpha": 0.5}, {"until": 1, "weights": {"cosine": 0.5}}], "max_steps": 80}},
        {"run": {"order": "length"}},
    ],
    ids=["hybrid", "labels", "wsd", "hidden states", "phases", "by length"],
)
def test_a_healthy_run_has_no_finding(changes: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    out = trained(folder, tmp_path / "run", **changes)
    assert not findings(out)
    assert [check.name for check in check_run(out)] == [
        "loss", "learning rate", "schedule", "terms", "temperature", "validation", "skips", "memory", "data",
    ]  # fmt: skip


def test_a_learning_rate_of_zero_is_a_problem_and_the_loss_does_not_fall(folder: Path, tmp_path: Path) -> None:
    found = findings(trained(folder, tmp_path / "run", optimizer={"lr": 1e-30, "rates": {"tables": 1e-30}}))
    assert found["learning rate"].level == "problem" and "matrices" in found["learning rate"].what
    assert found["loss"].level == "warning"


def test_one_group_without_a_learning_rate_is_a_problem(folder: Path, tmp_path: Path) -> None:
    found = findings(trained(folder, tmp_path / "run", optimizer={"rates": {"tables": 1e-30}}))
    assert "tables" in found["learning rate"].what and "matrices" not in found["learning rate"].what


def test_a_rising_loss_is_a_problem(folder: Path, tmp_path: Path) -> None:
    largest = {"lr": 10.0, "rates": {"tables": 10.0}}
    found = findings(trained(folder, tmp_path / "run", optimizer=largest, schedule={"warmup": 0.9}))
    assert found["loss"].level == "problem" and "--lr" in found["loss"].do


def test_a_schedule_longer_than_the_run_is_a_warning(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        trained(folder, tmp_path / "run", Stopping(25, signal.SIGINT), run={"max_steps": 100})
    found = findings(tmp_path / "run")
    assert set(found) == {"schedule"} and "--max-steps 25" in found["schedule"].do
    with locked(tmp_path / "run", print):
        assert "schedule" not in findings(tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("cosine", "constant"))
    assert "schedule" not in findings(tmp_path / "run")


def test_a_term_without_influence_is_a_warning(folder: Path, tmp_path: Path) -> None:
    found = findings(trained(folder, tmp_path / "run", losses={"weights": {"cosine": 1e-4}}))
    assert set(found) == {"terms"} and "losses.weights of cosine" in found["terms"].do


def test_a_temperature_with_little_mass_is_a_warning(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = trained(folder, tmp_path / "run", losses={"temperature": 2.0})
    found = findings(out)
    assert set(found) == {"temperature"} and "--target-temperature 2" in found["temperature"].do
    with monkeypatch.context() as patch:
        patch.setattr(coarse_targets, "masses_at", lambda *_: {2.0: 0.9})
        assert not findings(out)
    config = out / "config.yaml"
    config.write_text(config.read_text().replace(str(folder / "cache"), str(tmp_path / "moved")))
    assert "unknown" in findings(out)["temperature"].what


def test_many_epochs_over_little_text_are_a_gap_to_validation(folder: Path, tmp_path: Path) -> None:
    for name in ("teacher", "corpus.jsonl"):
        (tmp_path / name).symlink_to(folder / name)
    make_cache(tmp_path, data={"limit": 6, "val_fraction": 0.5})
    rates = {"lr": 1e-2, "rates": {"tables": 1e-2}}
    out = trained(
        tmp_path, tmp_path / "run", losses={"mode": "output"}, optimizer=rates, run={"epochs": 40, "max_steps": None}
    )
    found = findings(out)
    assert set(found) == {"validation"} and "overfitting" in found["validation"].do


def test_skipped_steps_are_a_problem(folder: Path, tmp_path: Path) -> None:
    guard = {"skip_gradient_norm": 1e-9, "patience": 3, "rollbacks": 0}
    with pytest.raises(KdpipeError):
        trained(folder, tmp_path / "run", guard=guard)
    found = findings(tmp_path / "run")
    assert found["skips"].level == "problem" and "--lr" in found["skips"].do
    assert found["steps"].what.startswith("0 steps")


def test_memory_that_grows_is_a_warning(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leak = itertools.count(10**9, 5 * 10**7)
    monkeypatch.setattr(step_log, "peak_process_bytes", lambda: next(leak))
    found = findings(trained(folder, tmp_path / "run"))
    assert set(found) == {"memory"}


def test_waiting_for_the_cache_is_a_warning(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock that is a second later at each look: reads take as long as slow remote ones.
    ticks = itertools.count()
    monkeypatch.setattr(prefetch, "time", types.SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    (check,) = [check for check in check_run(trained(folder, tmp_path / "run")) if check.name in TIMED]
    assert check.level == "warning" and "kdpipe cache copy" in check.do


def test_a_loss_that_rises_again_is_a_warning(folder: Path, tmp_path: Path) -> None:
    """With edited losses: no setting makes a run do so at the same step on every machine."""
    out = trained(folder, tmp_path / "run", losses={"mode": "output"})
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if "terms" in line:
            loss = 6 - 0.1 * min(line["step"], 30) + 0.2 * max(0, line["step"] - 30)
            line["terms"]["ce"]["weighted"] = loss + 0.01 * (line["step"] % 2)
    (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "rose again" in findings(out)["loss"].what


def test_a_short_run_has_no_trend_and_half_a_line_is_ignored(folder: Path, tmp_path: Path) -> None:
    out = trained(folder, tmp_path / "run", run={"max_steps": 3})
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "los')
    steps, skips = check_run(out)
    assert steps.level == "warning" and f"3 steps, fewer than {FEW_STEPS}" in steps.what and skips.level == "ok"


@pytest.mark.parametrize("missing", ["config.yaml", "metrics.jsonl"])
def test_a_folder_without_a_run_is_refused(missing: str, tmp_path: Path) -> None:
    for name in {"config.yaml", "metrics.jsonl"} - {missing}:
        (tmp_path / name).write_text("")
    with pytest.raises(ConfigError, match=missing.replace(".", r"\.")):
        check_run(tmp_path)
