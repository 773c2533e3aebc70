"""`train` on a small cache: its files, output and refusals."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from kdpipe.cache.opening import open_cache
from kdpipe.cli.flags import Flag, ParsedFlags
from kdpipe.cli.load_settings import train_settings
from kdpipe.pipeline.compare import CompareRequest, compare
from kdpipe.pipeline.training import finalize, memorization
from kdpipe.pipeline.training.run import micro_batch_size
from kdpipe.schemas.errors import CacheDamaged, CacheIncomplete, ConfigError, Incompatible, KdpipeError
from kdpipe.schemas.run_report import TrainReport
from support.stage_two import RecordingProgress, losses, make_cache, run, settings_for, weights


@pytest.fixture(scope="module")
def whole(folder: Path) -> tuple[TrainReport, RecordingProgress]:
    progress = RecordingProgress()
    return run(settings_for(folder, "whole"), progress), progress


def test_a_run_leaves_a_student_that_transformers_loads(
    folder: Path, whole: tuple[TrainReport, RecordingProgress]
) -> None:
    report, _ = whole
    assert report.final == str(folder / "whole" / "final")
    auto: Any = transformers.AutoModelForCausalLM
    model = auto.from_pretrained(report.final)
    tokens = torch.from_numpy(open_cache(folder / "cache")[0].tokens[:16].astype("int64"))[None]
    assert model(tokens).logits.isfinite().all()
    kept = folder / "cache" / "tokenizer" / "tokenizer.json"
    assert (folder / "whole" / "final" / "tokenizer.json").read_bytes() == kept.read_bytes()


@pytest.mark.slow
def test_a_run_checks_its_saved_student(folder: Path, fresh_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    run(settings_for(folder, "fresh"))
    saved = finalize.save_student

    def spoil(student: Any, place: Path, *rest: Any) -> Any:
        notes = saved(student, place, *rest)
        config = json.loads((place / "config.json").read_text())
        config["rope_parameters"]["rope_theta"] = 77.0
        (place / "config.json").write_text(json.dumps(config))
        return notes

    monkeypatch.setattr(finalize, "save_student", spoil)
    with pytest.raises(KdpipeError, match="gives other logits"):
        run(settings_for(folder, "spoilt"))


@pytest.mark.slow
def test_training_lowers_the_loss(folder: Path) -> None:
    settings = settings_for(folder, "longer", run={"max_steps": 30}, evaluation={"every": 15}, saving={"every": 30})
    run(settings)
    values = [loss for _, loss in losses(folder / "longer")]
    assert sum(values[-5:]) < 0.95 * sum(values[:5])


def test_the_report_has_the_results_of_the_run(whole: tuple[TrainReport, RecordingProgress]) -> None:
    report, progress = whole
    assert (report.steps, report.steps_planned, report.resumed_from) == (6, 6, None)
    assert list(report.terms) == ["ce", "forward_kl"]
    assert sum(term.share or 0 for term in report.terms.values()) == pytest.approx(1)
    assert sum(term.weighted or 0 for term in report.terms.values()) == pytest.approx(report.loss)
    assert report.evaluation is not None and report.evaluation["step"] == 6
    assert report.best is not None and report.best.step in (3, 6)
    assert progress.tasks["train"].total == 6
    assert {"val", "best"} <= progress.updates["train"][-1].facts.keys()
    assert [update.done for update in progress.updates["train"]] == [1, 2, 3, 4, 5, 6]
    assert [line for line in progress.messages if line.startswith("steps")] == [
        "steps       6 optimizer steps: 4 per batch x 2 batches = 8 sequences per step"
    ]
    assert "loss        0.1 x ce + 0.9 x forward_kl" in progress.messages


def test_the_first_steps_and_evaluations_are_rows_of_aligned_tables(
    whole: tuple[TrainReport, RecordingProgress],
) -> None:
    _, progress = whole
    steps, evaluations = progress.rows("grad norm"), progress.rows("val loss")
    assert [row["step"] for row in steps] == ["1", "2", "3"], "up to the first evaluation"
    assert list(steps[0]) == ["step", "loss", "grad norm", "ce", "forward_kl"]
    assert [row["step"] for row in evaluations] == ["3", "6"]
    assert list(evaluations[0]) == ["step", "val loss", "vs train", "val CE", "KL to teacher", "top-1", "ECE"]
    best = min(range(2), key=lambda n: float(evaluations[n]["val loss"].rstrip("*")))
    assert [row["val loss"].endswith("*") for row in evaluations] == [True, best == 1]
    assert max(len(line) for line in progress.messages if re.match(r" +(step|\d+) ", line)) < 80
    head, ce, kl = next(text for text in progress.messages if text.startswith("step 1 ")).splitlines()
    assert "2 x (tokens [4, 96], entries [" in head
    added = [float(re.search(r"= (\d+\.\d{4}) +\(\d+%\) over [\d,]+$", line)[1]) for line in (ce, kl)]  # type: ignore[index]  # they match
    assert sum(added) == pytest.approx(float(steps[0]["loss"]), abs=2e-4)
    assert ce.startswith("  ce          ") and kl.startswith("  forward_kl  ") and " x 0.9 = " in kl
    assert ce.index("=") == kl.index("=")
    assert len([line for line in progress.messages if line.startswith("    step ")]) == 2, "each header once"


@pytest.mark.slow
def test_the_factor_of_a_temperature_is_shown_in_the_first_steps(folder: Path, tmp_path: Path) -> None:
    progress = RecordingProgress()
    settings = settings_for(folder, losses={"temperature": 2.0}, run={"max_steps": 1})
    run(settings.model_copy(update={"out": str(tmp_path / "warm")}), progress)
    shown = next(line for line in progress.messages if line.startswith("step 1 "))
    numbers = re.search(r"forward_kl_coarse +(\S+) x 0.9 x 4 = (\S+) ", shown)
    assert numbers is not None and float(numbers[2]) == pytest.approx(3.6 * float(numbers[1]), abs=3e-4)


def test_every_step_is_a_line_of_the_log(folder: Path, whole: tuple[TrainReport, RecordingProgress]) -> None:
    lines = [json.loads(line) for line in (folder / "whole" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "verdict" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "evaluation" in line] == [3, 6]
    for line in steps:
        assert line["loss"] == pytest.approx(sum(term["weighted"] for term in line["terms"].values()))
        assert all(rate > 0 for rate in line["rates"].values()) or line["step"] == 6
        assert {"gradient_norm", "positions_per_second", "memory_bytes", "skipped", "success_rate"} <= line.keys()
    evaluation = next(line["evaluation"] for line in lines if "evaluation" in line)
    assert evaluation["train_gap"] == pytest.approx(evaluation["loss"] - steps[2]["loss"])
    assert evaluation["train_loss_is_estimate"] is False


def test_a_training_loss_on_memorized_samples_is_marked_as_an_estimate(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that a second epoch is one too many.
    monkeypatch.setattr(memorization, "EPOCHS", 0.0)
    n_epoch = len(open_cache(str(folder / "cache"), "train")) // 8
    settings = settings_for(folder, run={"max_steps": n_epoch + 2}, evaluation={"every": n_epoch, "limit": 1})
    settings = settings.model_copy(update={"out": str(tmp_path / "again")})
    dry = RecordingProgress()
    run(settings, dry, dry_run=True)
    progress = RecordingProgress()
    run(settings, progress)
    for heard in (dry, progress):
        assert [text for text in heard.warnings if "--epochs 1" in text]
    lines = [json.loads(line) for line in (tmp_path / "again" / "metrics.jsonl").read_text().splitlines()]
    estimated = [line["evaluation"]["train_loss_is_estimate"] for line in lines if "evaluation" in line]
    assert estimated == [False, True]
    assert ["~" in row["vs train"] for row in progress.rows("val loss")] == estimated
    assert len([line for line in progress.messages if "are estimates (~)" in line]) == 1


@pytest.mark.slow
def test_the_config_of_a_run_runs_again(folder: Path, whole: tuple[TrainReport, RecordingProgress]) -> None:
    out = Flag(name="--out", key="out", help="")
    again = train_settings(ParsedFlags(flags=((out, str(folder / "config")),), config=folder / "whole" / "config.yaml"))
    assert again.optimizer.lr == 3e-3 and again.machine.precision == "fp32"
    run(again)
    for name, value in weights(folder / "whole").items():
        assert torch.equal(value, weights(folder / "config")[name]), name


def test_a_finished_run_is_left_as_it_is(folder: Path, whole: tuple[TrainReport, RecordingProgress]) -> None:
    files = {path: path.stat().st_mtime_ns for path in (folder / "whole" / "final").iterdir()}
    assert run(settings_for(folder, "whole")) == whole[0]
    assert {path: path.stat().st_mtime_ns for path in (folder / "whole" / "final").iterdir()} == files


@pytest.mark.slow
def test_the_best_student_is_reported_with_its_own_step_and_metrics(folder: Path) -> None:
    """The first of two phases has the lower loss, and so the student of step 3 is chosen, which is meaningless."""
    phases = [{"until": 0.5, "alpha": 0.0}, {"until": 1.0, "alpha": 1.0}]
    changes = {"run": {"phases": phases}, "saving": {"final": "best"}, "evaluation": {"metric": "loss"}}
    settings = settings_for(folder, "best", **changes)
    progress = RecordingProgress()
    report = run(settings, progress)
    assert [line for line in progress.warnings if "evaluation.metric is loss" in line]
    assert report.best is not None and report.evaluation is not None
    assert (report.best.step, report.steps) == (3, 6)
    assert report.evaluation["step"] == report.best.step
    assert report.evaluation["loss"] == pytest.approx(report.best.value)
    assert f"| optimizer steps | {report.best.step} |" in (folder / "best" / "final" / "README.md").read_text()
    best = weights(folder / "best")
    again = run(settings.model_copy(update={"saving": settings.saving.model_copy(update={"final": "last"})}))
    assert again.evaluation is not None and (again.evaluation["step"], again.resumed_from) == (6, 6)
    last = weights(folder / "best")
    unsaid = settings_for(folder, "unsaid", **(changes | {"evaluation": {}}))
    chosen = run(unsaid).best
    assert chosen is not None and chosen.metric == "cross_entropy"
    assert any(not torch.equal(best[name], last[name]) for name in best)


@pytest.mark.parametrize(
    "changes",
    [
        {"losses": {"mode": "output"}},
        {"losses": {"mode": "logit", "temperature": 2.0}},
        {"losses": {"logit": "jsd", "weights": {"reverse_kl": 0.1, "total_variation": 0.2}}},
        {"losses": {"tail_weight": 2.0}},
        {"losses": {"select": [{"term": "ce", "by": "teacher_entropy", "keep": "lowest", "share": 0.2}]}},
        {"losses": {"select": [{"term": "kd", "by": "student_entropy", "keep": "highest", "share": 0.5}]}},
        {"losses": {"weights": {"cosine": 0.1, "cka": 0.1}, "hidden": {"router": True}}},
        {"losses": {"weights": {"position_relations": 0.1, "document_relations": 0.1, "mse": 0.1}}},
        {"optimizer": {"kind": "muon"}},
        {"machine": {"precision": "bf16", "portion": 3}},
        {"machine": {"precision": "fp16"}},
        {"student": {"gradient_checkpointing": True, "freeze_head": True}},
        {"run": {"order": "entropy", "phases": [{"until": 0.5, "alpha": 1.0}, {"until": 1.0, "order": "length"}]}},
        {"guard": {"preset": "ultra-stable", "clamp_logits": 2.5, "clamp_loss": 20.0}},
        {"saving": {"final": "best"}},
    ],
    ids=str,
)
@pytest.mark.slow
def test_every_kind_of_training_runs_to_its_end(folder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    settings = settings_for(folder, "way", **changes).model_copy(update={"out": str(tmp_path / "way")})
    report = run(settings)
    assert report.steps == 6 and report.final is not None
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "way").values())


@pytest.mark.slow
def test_a_split_into_batches_changes_nothing(folder: Path) -> None:
    one = settings_for(
        folder, "one", student={"name": _without_dropout(folder)}, run={"batch_size": 8, "accumulate": 1}
    )
    two = settings_for(
        folder, "two", student={"name": _without_dropout(folder)}, run={"batch_size": 4, "accumulate": 2}
    )
    for settings in (one, two):
        run(settings)
    for (_, a), (_, b) in zip(losses(folder / "one"), losses(folder / "two"), strict=True):
        assert a == pytest.approx(b, rel=1e-5)


def _without_dropout(folder: Path) -> str:
    settings_for(folder)
    config = json.loads((folder / "student.json").read_text())
    (folder / "sure.json").write_text(json.dumps(config | {"attention_dropout": 0.0}))
    return str(folder / "sure.json")


@pytest.mark.parametrize(
    ("group", "requested", "longest", "device", "expected"),
    [
        (None, None, 512, "cpu", 2),
        (None, None, 4096, "cpu", 1),
        (None, None, 96, "cpu", 8),
        (None, None, 512, "cuda", 8),
        (None, 3, 512, "cuda", 3),
        (4, None, 512, "cpu", 4),
        (4, None, 1024, "cpu", 4),
        (2, None, 1024, "cpu", 2),
    ],
)
def test_micro_batches_on_a_cpu_split_no_group(
    folder: Path, group: int | None, requested: int | None, longest: int, device: str, expected: int
) -> None:
    losses = {} if group is None else {"weights": {"cka": 0.1}, "hidden": {"group": group}}
    settings = settings_for(folder, run={"batch_size": 8}, losses=losses, machine={"portion": requested})
    assert micro_batch_size(settings, longest, torch.device(device)) == expected


def test_the_exact_mass_at_another_temperature_is_reported(folder: Path) -> None:
    progress = RecordingProgress()
    run(settings_for(folder, "hot", losses={"temperature": 4.0}, run={"max_steps": 1}), progress)
    lines = [json.loads(line) for line in (folder / "hot" / "metrics.jsonl").read_text().splitlines()]
    assert [list(line.get("evaluation", line)["terms"]) for line in lines] == [["ce", "forward_kl_coarse"]] * 2
    [warning] = [line for line in progress.warnings if line.startswith("at temperature 4 the exact ids have")]
    assert int(warning.split("have ")[1].split("%")[0]) < 50
    assert any("one coarse bin" in line for line in progress.warnings)
    assert f"--target-temperature 4 --out {folder / 'cache'}-t4" in warning


@pytest.mark.slow
def test_a_shifted_loss_is_named_so_wherever_it_is_shown(folder: Path) -> None:
    progress, values, means = RecordingProgress(), {}, {}
    for name, draw_values in (("shifted", False), ("true", True)):
        targets = {"target_temperature": 2.0, "temperatures": (2.0,), "draw_values": draw_values}
        make_cache(folder, f"cache-{name}", targets=targets)
        settings = settings_for(folder, f"run-{name}", kept=f"cache-{name}", losses={"temperature": 2.0})
        values[name] = run(settings, progress if name == "shifted" else None)
        lines = [json.loads(line) for line in (folder / f"run-{name}" / "metrics.jsonl").read_text().splitlines()]
        means[name] = lines[0]["terms"]["forward_kl_shifted" if name == "shifted" else "forward_kl"]["raw"]
        for line in lines:
            shown = line.get("evaluation", line)
            assert ("loss_shifted" in shown, "loss" in shown) == ((True, False) if name == "shifted" else (False, True))
    assert means["shifted"] > means["true"] + 0.5
    assert any("forward_kl at temperature 2 is shifted" in line for line in progress.warnings)
    assert progress.rows("loss_shifted") and progress.rows("val loss_shifted")
    best, evaluation = values["shifted"].best, values["shifted"].evaluation
    assert best is not None and best.metric == "loss_shifted"
    assert evaluation is not None and "loss" not in evaluation
    first, second = compare(CompareRequest(names=[str(folder / f"run-{name}") for name in ("shifted", "true")])).runs
    assert ("loss_shifted" in first.numbers, "loss" in first.numbers) == (True, False)
    assert ("loss_shifted" in second.numbers, "loss" in second.numbers) == (False, True)


@pytest.mark.slow
def test_training_on_labels_only_needs_no_targets(folder: Path) -> None:
    make_cache(folder, "tokens", targets={"kind": "none", "temperatures": ()}, hidden={"pooled": False, "layers": ()})
    report = run(settings_for(folder, "labels", kept="tokens", losses={"mode": "output"}))
    assert list(report.terms) == ["ce"] and report.evaluation is not None
    assert report.evaluation["kl_teacher"] is None
    with pytest.raises(Incompatible, match="tokens only") as refused:
        run(settings_for(folder, "no-targets", kept="tokens"))
    assert refused.value.exit_code == 4 and not (folder / "no-targets").exists()


@pytest.mark.slow
def test_a_dry_run_estimates_and_leaves_nothing(folder: Path) -> None:
    settings = settings_for(folder, "dry", run={"max_steps": 1000})
    before = sorted(folder.iterdir())
    report = run(settings.model_copy(update={"report_to": ("tensorboard",)}), dry_run=True)
    assert report.steps == 5 and report.dry_run is not None and report.dry_run.seconds > 1
    assert report.dry_run.peak_bytes > 1 << 20 and report.final is None
    assert sorted(folder.iterdir()) == before


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 5, 9])
def test_a_dry_run_shows_each_evaluation_once(folder: Path, every: int) -> None:
    """Due at its last step or not: it is measured there once, for the estimate."""
    progress = RecordingProgress()
    settings = settings_for(folder, "dry", evaluation={"every": every, "limit": 4})
    report = run(settings, progress, dry_run=True)
    shown = [row["step"] for row in progress.rows("val loss")]
    assert shown == [f"{step}" for step in range(1, 6) if step % every == 0 or step == 5]
    assert report.evaluation is not None and report.evaluation["step"] == 5


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"cache": {"path": "nowhere"}}, ConfigError, "nowhere"),
        ({"losses": {"temperature": 8.0}}, Incompatible, "temperature"),
        ({"student": {"name": "350n"}}, ConfigError, "unknown student 350n"),
        ({"losses": {"weights": {"router_balance": 0.1}}}, ConfigError, "there is no router"),
        ({"losses": {"mode": "output", "weights": {"jsd": 1.0}}}, ConfigError, "mode output"),
        ({"machine": {"device": "cuda:7"}}, ConfigError, "cuda:7 does not exist"),
    ],
)
def test_invalid_settings_are_refused_before_anything_is_written(
    folder: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(settings_for(folder, "refused", **changes))
    assert not (folder / "refused" / "checkpoints").exists()


@pytest.mark.slow
def test_an_incomplete_cache_is_refused_with_the_number_of_missing_parts(folder: Path, tmp_path: Path) -> None:
    partial = _copied(folder / "cache", tmp_path / "partial")
    (partial / "index.parquet").unlink()
    for part in sorted((partial / "parts").iterdir())[1:2]:
        _remove(part)
    settings = settings_for(folder, kept=str(partial)).model_copy(update={"out": str(tmp_path / "run")})
    with pytest.raises(CacheIncomplete, match=r"1.*\d+ parts.*missing") as refused:
        run(settings)
    assert refused.value.exit_code == 2
    allowed = settings.model_copy(update={"cache": settings.cache.model_copy(update={"allow_partial": True})})
    assert run(allowed).cache_id is None


def test_a_damaged_cache_names_part_and_file(folder: Path, tmp_path: Path) -> None:
    damaged = _copied(folder / "cache", tmp_path / "damaged")
    for path in damaged.glob("parts/*/targets.zarr/id/c/0"):
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 1
        path.write_bytes(data)
    settings = settings_for(folder, kept=str(damaged)).model_copy(update={"out": str(tmp_path / "run")})
    with pytest.raises(CacheDamaged, match=r"parts/0000\d/targets.zarr/id"):
        run(settings)


def test_the_folder_of_another_run_is_refused_with_what_differs(
    folder: Path, whole: tuple[TrainReport, RecordingProgress]
) -> None:
    with pytest.raises(ConfigError, match=r"losses.alpha: 0.1 -> 0.5") as refused:
        run(settings_for(folder, "whole", losses={"alpha": 0.5}))
    assert "--overwrite" in str(refused.value.hint)


def _copied(source: Path, target: Path) -> Path:
    for path in source.rglob("*"):
        if path.is_file():
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(source)).write_bytes(path.read_bytes())
    return target


def _remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()
