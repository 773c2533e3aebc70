"""Default optimizer and learning rates by kind and size; explicit settings come first."""

import json
import re
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import get_args

import pytest

from kdpipe.pipeline.training.optimizer_defaults import DEFAULT_OPTIMIZER, DEFAULTS, StudentKind, fill_defaults, reason
from kdpipe.schemas.choices import OptimizerName
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.train_settings import LARGEST_RATE, OptimizerSettings
from support.recording import RecordingProgress
from support.source import ROOT
from support.stage_two import make_cache, run, settings_for

KINDS: tuple[StudentKind, ...] = get_args(StudentKind)
OPTIMIZERS: tuple[OptimizerName, ...] = get_args(OptimizerName)
SIZES = (20_000, 1_000_000, 135_000_000, 70_000_000_000)
rates_of = ("matrices", "tables", "vectors")


def test_every_kind_of_student_has_learning_rates_for_every_optimizer() -> None:
    assert set(DEFAULTS) == set(product(KINDS, OPTIMIZERS)) and set(DEFAULT_OPTIMIZER) == set(KINDS)
    assert DEFAULT_OPTIMIZER == {"fresh": "muon", "pretrained": "adamw", "lora": "adamw"}


@pytest.mark.parametrize(("student", "n_parameters"), list(product(KINDS, SIZES)))
def test_defaults_depend_on_kind_and_size(student: StudentKind, n_parameters: int) -> None:
    settled = fill_defaults(OptimizerSettings(), student, n_parameters)
    kind = DEFAULT_OPTIMIZER[student]
    own = DEFAULTS[student, kind].at(n_parameters)
    assert settled.kind == kind and settled.lr == own.matrices
    assert [getattr(settled.rates, name) for name in rates_of] == [getattr(own, name) for name in rates_of]
    assert all(0 < getattr(own, name) <= 1 for name in rates_of)


@pytest.mark.parametrize("student", KINDS)
def test_larger_students_never_have_larger_learning_rates(student: StudentKind) -> None:
    for kind in OPTIMIZERS:
        found = [DEFAULTS[student, kind].at(size) for size in SIZES]
        for name in rates_of:
            values = [getattr(each, name) for each in found]
            assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(
    ("n_parameters", "matrices", "tables"),
    [(100_000, 0.038, 0.25), (1_000_000, 0.015, 0.1), (10_600_000, 0.0094, 0.012), (30_000_000, 0.0076, 0.0047)],
)
def test_learning_rates_of_new_students_follow_the_sweep(n_parameters: int, matrices: float, tables: float) -> None:
    own = DEFAULTS["fresh", "muon"].at(n_parameters)
    assert (own.matrices, own.tables) == (matrices, tables)


@pytest.mark.parametrize(("student", "kind"), list(product(KINDS, OPTIMIZERS)))
def test_an_optimizer_that_is_named_has_its_own_learning_rates(student: StudentKind, kind: OptimizerName) -> None:
    settled = fill_defaults(OptimizerSettings(kind=kind), student, 3_000_000)
    own = DEFAULTS[student, kind].at(3_000_000)
    assert settled.kind == kind
    assert [getattr(settled.rates, name) for name in rates_of] == [getattr(own, name) for name in rates_of]


@pytest.mark.parametrize(("student", "kind"), list(product(KINDS, OPTIMIZERS)))
def test_lr_scales_every_group_without_its_own_rate(student: StudentKind, kind: OptimizerName) -> None:
    plain = fill_defaults(OptimizerSettings(kind=kind), student, 1_000_000)
    assert plain.lr is not None
    settled = fill_defaults(OptimizerSettings(kind=kind, lr=plain.lr / 4), student, 1_000_000)
    for name in rates_of:
        assert getattr(settled.rates, name) == pytest.approx(getattr(plain.rates, name) / 4)
    given = OptimizerSettings.model_validate({"kind": kind, "lr": plain.lr / 4, "rates": {"tables": 0.5}})
    settled = fill_defaults(given, student, 1_000_000)
    assert settled.rates.tables == 0.5 and settled.rates.matrices == plain.lr / 4


def test_the_factor_of_a_guard_scales_defaults_only() -> None:
    plain, half = (fill_defaults(OptimizerSettings(), "fresh", 1_000_000, factor=factor) for factor in (1.0, 0.5))
    assert plain.rates.tables is not None and half.rates.tables == plain.rates.tables / 2
    assert fill_defaults(OptimizerSettings(lr=0.01), "fresh", 1_000_000, factor=0.5).lr == 0.01


def test_an_lr_that_scales_another_group_too_high_is_refused() -> None:
    with pytest.raises(ConfigError, match="tables") as refused:
        fill_defaults(OptimizerSettings(lr=LARGEST_RATE), "fresh", 1_000_000)
    assert "optimizer.rates.tables" in str(refused.value.hint)
    given = OptimizerSettings.model_validate({"lr": LARGEST_RATE, "rates": {"tables": 1.0}})
    assert fill_defaults(given, "fresh", 1_000_000).rates.tables == 1.0


def test_the_reason_names_kind_size_and_given_settings() -> None:
    given = OptimizerSettings.model_validate({"rates": {"matrices": 0.012, "tables": 0.1}})
    text = reason(given, fill_defaults(given, "fresh", 2_600_000), "fresh", 2_600_000)
    assert text.startswith("fresh, 2.6 M parameters: muon 0.012, tables 0.1")
    assert "optimizer.rates.tables" in text and "optimizer.kind" not in text


@pytest.mark.slow
def test_the_default_of_a_run_is_printed_and_in_its_record_and_on_its_card(tmp_path: Path) -> None:
    make_cache(tmp_path)
    progress = RecordingProgress()
    settings = settings_for(tmp_path, run={"max_steps": 1}).model_copy(update={"optimizer": OptimizerSettings()})
    run(settings, progress)
    record = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["optimizer"]
    kept = json.loads(next((tmp_path / "run" / "checkpoints").glob("*/run.json")).read_text())
    printed = "\n".join(progress.messages)
    assert f"peak learning rate {record['lr']:.3g}" in printed
    assert "learning rates: default for random init" in printed
    assert record["kind"] == "muon"
    assert kept["settings"]["optimizer"] == record
    rates = re.escape(f"muon {record['lr']:.3g}, tables {record['rates']['tables']:.3g}")
    card = (tmp_path / "run" / "final" / "README.md").read_text()
    assert re.search(rf"^\| optimizer \| fresh, [\d.]+ k parameters: {rates}", card, re.MULTILINE)


def test_the_docs_have_the_default_learning_rates() -> None:
    page = (ROOT / "docs" / "train.md").read_text(encoding="utf-8")
    page = page.partition("\n## Optimizer and learning rate\n")[2].partition("\n## ")[0]
    number = r" ([\d.]+) \|"
    row = rf"^\| (\w+) \| (\w+)( \(default\))? \|{number * 6}$"
    rows = re.findall(row, page, re.MULTILINE)
    names = {"fresh": "fresh", "pretrained": "pretrained", "LoRA": "lora", "Muon": "muon", "AdamW": "adamw"}
    found = {(names[kind], names[optimizer]): [float(value) for value in rest] for kind, optimizer, _, *rest in rows}
    assert found == {key: [getattr(each, field.name) for field in fields(each)] for key, each in DEFAULTS.items()}
    assert {
        names[kind]: names[optimizer] for kind, optimizer, is_default, *_ in rows if is_default
    } == DEFAULT_OPTIMIZER
