"""`kdpipe train`: its options as settings, what it passes on, and its report.

The story is replaced by one that writes down what it is given: this is the border between words and verbs.
"""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import kdpipe.pipeline
from kdpipe.cli.flags import Flag
from kdpipe.cli.main import run
from kdpipe.cli.train_options import FLAGS
from kdpipe.schemas.run_report import BestReport, DryStep, Estimate, TermReport, TrainMemory, TrainReport
from kdpipe.schemas.train_settings import TrainOptions, TrainSettings

WORDS = ["train", "--from-cache", "teacher-cache", "--student", "tiny", "--out", "runs/a"]
PLAIN = TrainReport(
    run="runs/a",
    final="runs/a/final",
    cache="teacher-cache",
    cache_id="ab12",
    student="tiny",
    n_parameters=4_193_280,
    n_trainable=4_193_280,
    device="cpu",
    precision="fp32",
    steps=1_200,
    steps_planned=1_200,
    resumed_from=None,
    positions=1_234_567,
    epochs=1.5,
    terms={
        "ce": TermReport(raw=3.2501, weight=0.1, weighted=0.32501, share=0.4),
        "forward_kl": TermReport(raw=0.54321, weight=0.9, weighted=0.488889, share=0.6),
    },
    loss=0.81,
    evaluation={"step": 1200, "loss": 0.9, "cross_entropy": 3.25, "perplexity": 25.79, "ece": 0.0312},
    best=BestReport(step=1_100, metric="loss", value=0.8912),
    skipped=0,
    rollbacks=0,
    positions_per_second=45_000.4,
    waiting_share=0.0042,
    memory=TrainMemory(weights=16_773_120, peak_process=1_520_100_000, peak_device=None),
    seconds=83.0,
)


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the story was given, by the name of what it was; it answers with `report` of it."""
    seen: dict[str, Any] = {"report": PLAIN}

    def train(settings: TrainSettings, options: TrainOptions, progress: Any) -> Any:
        seen.update(settings=settings, options=options, progress=progress)
        return seen["report"]

    module = ModuleType("kdpipe.pipeline.train")
    module.train = train  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(kdpipe.pipeline, "train", module, raising=False)
    return seen


def settings_of(handed: dict[str, Any], *words: str) -> TrainSettings:
    assert run([*WORDS, *words]) == 0
    found: TrainSettings = handed["settings"]
    return found


def at(settings: TrainSettings, place: str) -> Any:
    value: Any = settings
    for step in place.split("."):
        value = getattr(value, step)
    return value


TYPED = [
    ("--from-cache", "other", "cache.path", "other"),
    ("--student", "org/name", "student.name", "org/name"),
    ("--out", "runs/b", "out", "runs/b"),
    ("--allow-partial", None, "cache.allow_partial", True),
    ("--pin", "0123456789abcdef", "cache.pin", "0123456789abcdef"),
    ("--verify", "always", "cache.verify", "always"),
    ("--cache-dir", "/near", "cache.dir", "/near"),
    ("--cache-limit", "20GB", "cache.limit", 20_000_000_000),
    ("--retry-for", "5m", "cache.retry_for", 300.0),
    ("--mode", "logit", "losses.mode", "logit"),
    ("--alpha", "0.25", "losses.alpha", 0.25),
    ("--temperature", "2", "losses.temperature", 2.0),
    ("--allow-coarse", None, "losses.allow_coarse", True),
    ("--lr", "3e-4", "optimizer.lr", 3e-4),
    ("--optimizer", "adamw", "optimizer.kind", "adamw"),
    ("--epochs", "2.5", "run.epochs", 2.5),
    ("--max-steps", "100", "run.max_steps", 100),
    ("--batch-size", "16", "run.batch_size", 16),
    ("--accumulate", "4", "run.accumulate", 4),
    ("--precision", "fp16-pure", "machine.precision", "fp16-pure"),
    ("--guard", "ultra-stable", "guard.preset", "ultra-stable"),
    ("--lora", None, "student.lora", True),
    ("--report-to", "wandb, mlflow", "report_to", ("wandb", "mlflow")),
    ("--report-to", "none", "report_to", ()),
    ("--loss", "skew_kl", "losses.logit", "skew_kl"),
    ("--schedule", "wsd", "schedule.kind", "wsd"),
    ("--warmup", "5%", "schedule.warmup", 0.05),
    ("--warmup", "20", "schedule.warmup", 20.0),
    ("--weight-decay", "0.1", "optimizer.weight_decay", 0.1),
    ("--clip", "0.5", "optimizer.clip", 0.5),
    ("--eval-every", "5", "evaluation.every", 5),
    ("--save-every", "6", "saving.every", 6),
    ("--keep-checkpoints", "3", "saving.keep", 3),
    ("--devices", "cpu", "machine.device", "cpu"),
    ("--threads", "3", "machine.threads", 3),
    ("--threads", "auto", "machine.threads", "auto"),
    ("--gradient-checkpointing", None, "student.gradient_checkpointing", True),
    ("--seed", "7", "seed", 7),
]


@pytest.mark.parametrize(("flag", "word", "place", "value"), TYPED, ids=lambda value: str(value))
def test_a_flag_sets_its_setting_and_no_other(
    flag: str, word: str | None, place: str, value: Any, handed: dict[str, Any]
) -> None:
    plain = settings_of(handed)
    changed = settings_of(handed, *([flag] if word is None else [flag, word]))
    assert at(changed, place) == value
    differing = [flag.key for flag in FLAGS if at(changed, flag.key) != at(plain, flag.key)]
    assert differing in ([place], [])


def test_every_flag_is_tried_here() -> None:
    assert {flag for flag, *_ in TYPED} == {flag.name for flag in FLAGS}


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_a_default_in_the_help_is_the_default(flag: Flag) -> None:
    default = at(TrainSettings(), flag.key)
    reported = flag.help.rpartition("[")[2].removesuffix("].") if flag.help.endswith("].") else None
    if reported is None or default is None:
        assert default in (None, False, (), "auto")
    else:
        assert type(default)(reported) == default


def test_the_layers_join_in_their_order(
    handed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "kd.yaml"
    config.write_text("seed: 1\nrun: {batch_size: 1, accumulate: 1}\nlosses: {alpha: 0.5, skew: 0.3}\n")
    monkeypatch.setenv("KDPIPE_RUN__BATCH_SIZE", "2")
    monkeypatch.setenv("KDPIPE_LOSSES__ALPHA", "0.6")
    monkeypatch.setenv("KDPIPE_SEED", "2")
    words = ("--config", str(config), "--set", "losses.alpha=0.7", "--set", "seed=3", "--seed", "4")
    settings = settings_of(handed, *words)
    reported = (settings.losses.skew, settings.run.accumulate, settings.run.batch_size, settings.losses.alpha)
    assert (*reported, settings.seed) == (0.3, 1, 2, 0.7, 4)


def test_variables_of_stage_one_are_left_to_it(handed: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDPIPE_DATA__VAL_FRACTION", "0.05")
    settings_of(handed)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs", "1", "--max-steps", "5"], "--epochs and --max-steps both set"),
        (["--mode", "output", "--alpha", "0.2"], "--alpha applies to the mode hybrid, not to output (--mode)"),
        (["--mode", "output", "--temperature", "2"], "--temperature applies to the mode"),
        (["--optimizer", "adamw", "--set", "optimizer.momentum=0.9"], "--set optimizer.momentum=0.9 applies to"),
        (["--set", "student.lora_rank=8"], "--set student.lora_rank=8 applies to LoRA"),
        (["--alpha", "1.5"], "--alpha must be at most 1, not 1.5"),
        (["--temperature", "0"], "--temperature must be at least 0.001, not 0"),
        (["--batch-size", "0"], "--batch-size must be at least 1, not 0"),
        (["--report-to", "wandbb"], "--report-to: item 1 must be"),
        (["--set", "losses.temprature=2"], "--set losses.temprature=2: unknown setting 'losses.temprature': the near"),
        (["--set", "run.phases=[{until: 0.5}]"], "--set run.phases=[{until: 0.5}]: the last phase must end at 1"),
        (["--set", "losses.weights.cka=1", "--batch-size", "6"], "batch size 6 is not a multiple of"),
        (["--set", "losses.hidden.router=true"], "losses.hidden.router applies to"),
        (["--config", "missing.yaml"], "the file missing.yaml cannot be read: No such file or directory"),
        (["--mode", "both"], "Invalid value for '--mode'"),
        (["--lr", "fast"], "Invalid value for '--lr'"),
        (["--teacher", "t"], "No such option: --teacher"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_loaded(
    words: list[str], message: str, handed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*WORDS, *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"error: {message}")
    assert "settings" not in handed


@pytest.mark.parametrize(
    ("n_words", "options"),
    [(1, "--from-cache DIR --student NAME --out DIR"), (3, "--student NAME --out DIR"), (5, "--out DIR")],
)
def test_missing_settings_are_required(n_words: int, options: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(WORDS[:n_words]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: missing: ") and hint == f"hint: give {options}"


def test_what_one_call_does_is_handed_over(handed: dict[str, Any]) -> None:
    settings_of(handed)
    assert handed["options"] == TrainOptions()
    settings_of(handed, "--resume-from", "step-000003")
    assert handed["options"] == TrainOptions(resume_from="step-000003")
    settings_of(handed, "--overwrite", "--dry-run")
    assert handed["options"] == TrainOptions(overwrite=True, dry_run=True)


def test_someone_follows_on_stderr_alone(handed: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    settings_of(handed)
    handed["progress"].warning("look here")
    shown = capsys.readouterr()
    assert shown.err.splitlines()[-1] == "warning: look here" and "look here" not in shown.out


def test_json_is_the_report_and_nothing_else(handed: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    settings_of(handed, "--json")
    shown = capsys.readouterr()
    answer = json.loads(shown.out)
    assert list(answer) == list(TrainReport.model_fields)
    assert answer == PLAIN.model_dump(mode="json")
    assert shown.err == ""


PAGE = """\
runs/a
  student     tiny, 4,193,280 parameters, fp32 on cpu
  cache       ab12
  steps       1,200 of 1,200, 1.5 epochs
  positions   1,234,567
  ce          3.2501, weighted 0.3250 (weight 0.1), 40% of the loss
  forward_kl  0.5432, weighted 0.4889 (weight 0.9), 60% of the loss
  validation  loss 0.9000, CE 3.2500, perplexity 25.79, ECE 3.1%
  best        step 1,100: loss 0.8912
  time        83 s, 45,000 positions/s, 0.4% waiting for the cache
  memory      weights 16.8 MB, process peak 1.5 GB
student: runs/a/final
"""


def test_the_page_reports_results(handed: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    settings_of(handed)
    assert capsys.readouterr().out == PAGE


def test_a_finished_run_is_followed_by_commands_to_copy(
    handed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    settings_of(handed)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "next:"
    assert [line.split()[:2] for line in lines[1:]] == [
        ["kdpipe", name] for name in ("eval", "sample", "compare", "export")
    ]
    assert all("runs/a" in line for line in lines[1:])
    settings_of(handed, "--quiet")
    assert capsys.readouterr().err == ""


def test_the_page_reports_unusual_events(handed: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    handed["report"] = PLAIN.model_copy(
        update={
            "cache_id": None,
            "n_trainable": 65_536,
            "resumed_from": 600,
            "terms": {"reverse_kl_bound": TermReport(raw=None, weight=0.5, weighted=None, share=None)},
            "evaluation": None,
            "best": None,
            "skipped": 1_234,
            "rollbacks": 2,
            "positions_per_second": None,
            "waiting_share": None,
            "memory": TrainMemory(weights=5, peak_process=None, peak_device=2_000_000_000),
        }
    )
    settings_of(handed)
    out = capsys.readouterr().out
    for line in (
        "student          tiny, 4,193,280 parameters, 65,536 trainable, fp32 on cpu",
        "cache            teacher-cache, unfinished",
        "steps            1,200 of 1,200, 1.5 epochs, resumed from step 600",
        "skipped          1,234 steps, 2 rollbacks",
        "reverse_kl_bound not measured (weight 0.5)",
        "time             83 s",
        "memory           weights 5 bytes, device peak 2.0 GB",
    ):
        assert f"  {line}\n" in out
    assert "validation" not in out and "best" not in out


def test_a_dry_run_estimates_the_whole_run(handed: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    handed["report"] = PLAIN.model_copy(
        update={"final": None, "dry_run": Estimate(seconds=5_400.0, peak_bytes=1_520_100_000)}
    )
    settings_of(handed, "--dry-run")
    reported = capsys.readouterr().out.splitlines()[-1]
    assert reported == "dry run: OK; the whole run needs about 1 h 30 min and 1.5 GB of memory"


def test_many_terms_of_a_dry_run_fill_80_columns_at_most(
    handed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    terms = {
        name: TermReport(raw=1.0, weight=0.5, weighted=0.5, share=0.2)
        for name in ("ce", "forward_kl_coarse", "reverse_kl_bound", "cosine", "document_relations")
    }
    rates = dict.fromkeys(("matrices", "tables", "vectors", "maps"), 0.001)
    steps = tuple(DryStep(step=n, loss=2.5, terms=terms, rates=rates, gradient_norm=1.0) for n in (1, 2))
    estimate = Estimate(seconds=1.0, peak_bytes=5, steps=steps)
    handed["report"] = PLAIN.model_copy(update={"final": None, "dry_run": estimate})
    settings_of(handed, "--dry-run")
    lines = capsys.readouterr().out.splitlines()
    tables = [line for line in lines if line.split()[:1] == ["step"]]
    assert len(tables) == 2 and all(len(line) <= 80 for line in tables)


def test_a_dry_run_shows_shapes_and_learning_rates(handed: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    step = DryStep(step=1, loss=3.0, terms={}, rates={"matrices": 0.01, "tables": 0.1}, gradient_norm=1.0)
    estimate = Estimate(
        seconds=1.0,
        peak_bytes=5,
        peak_device_bytes=2_000_000_000,
        steps=(step,),
        student_shapes={"logits": (1_024, 512)},
        teacher_shapes={"token ids": (1_024, 25)},
    )
    handed["report"] = PLAIN.model_copy(update={"final": None, "dry_run": estimate})
    settings_of(handed, "--dry-run")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["student", "logits", "1,024", "x", "512"] in lines
    assert ["teacher", "token", "ids", "1,024", "x", "25"] in lines
    assert ["step", "loss", "lr", "matrices", "lr", "tables"] in lines
    assert ["1", "3.0000", "0.01", "0.1"] in lines
    assert lines[-1][-5:] == ["2.0", "GB", "on", "the", "device"]


def test_the_table_imports_nothing_heavy() -> None:
    program = "import sys; import kdpipe.cli.train_options, kdpipe.cli.train; print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert not set(answer.stdout.split()) & {"torch", "transformers", "numpy", "pydantic", "yaml", "rich.console"}
