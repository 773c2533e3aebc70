"""docs/train.md: its commands run; its settings, presets, keys and files are those of the code."""

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from kdpipe.cache.durable.lock import LOCK
from kdpipe.cli import main
from kdpipe.cli.train_options import FLAGS
from kdpipe.pipeline.students.presets import PRESETS as STUDENTS
from kdpipe.pipeline.training.guard import PRESETS
from kdpipe.pipeline.training.run_folder import MAY_DIFFER
from kdpipe.schemas.choices import BestMetric, OrderName, Statistic, TrackerName
from kdpipe.schemas.records import Record
from kdpipe.schemas.train_settings import Phase, PositionSelection, TrainSettings
from support.source import ROOT
from support.stage_two import make_cache

PAGE = (ROOT / "docs" / "train.md").read_text(encoding="utf-8")
TABLE = PAGE.partition("## Settings")[2]
# Keys of bad steps only, tested where steps are made to fail.
FAULT_KEYS = {"nonfinite", "undone", "metrics_gap.expected_lines", "metrics_gap.present_lines"}


def blocks(language: str) -> list[str]:
    """The code blocks of the page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def section(name: str) -> str:
    """The text under a heading."""
    return PAGE.partition(f"\n## {name}\n")[2].partition("\n## ")[0]


def settings(kind: type[Record] = TrainSettings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting with its default."""
    for name, field in kind.model_fields.items():
        if isinstance(field.default, Record):
            yield from settings(type(field.default), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.default


def keys(line: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of a metrics line, with placeholders for names that depend on the run."""
    words = {"terms": "NAME", "rates": "GROUP", "logged": "NAME"}
    for key, value in line.items():
        word = words.get(prefix.rstrip(".").rpartition(".")[2], key)
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{word}.")
        else:
            yield prefix + word


@pytest.mark.slow
def test_every_command_of_the_page_runs_and_writes_the_listed_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_cache(tmp_path, "teacher-cache")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDPIPE_MACHINE__THREADS", "1")
    for module in ("training.finalize", "students.export_folder"):
        # Reloading each student in another process takes seconds; other tests cover it.
        monkeypatch.setattr(f"kdpipe.pipeline.{module}.check_reload", lambda *_, **__: 0.0)
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(lines) >= 11
    for line in lines:
        words = shlex.split(line, comments=True)
        with monkeypatch.context() as environment:
            while "=" in words[0]:
                environment.setenv(*words.pop(0).split("=", 1))
            assert words[0] == "kdpipe"
            assert main.run(words[1:]) == 0, line
    files = re.findall(r"^\| `([\w.]+)/?` \|", section("The run folder"), re.MULTILINE)
    run = tmp_path / "runs" / "curriculum"
    assert sorted([*os.listdir(run), LOCK]) == sorted(files)  # the lock exists while the run is active
    written = {key for name in ("curriculum", "first") for key in _metric_keys(tmp_path / "runs" / name)}
    documented = re.findall(r"`([\w.]+)`", "".join(re.findall(r"^\|(.+?)\|", section("metrics.jsonl"), re.MULTILINE)))
    assert written == set(documented) - FAULT_KEYS
    for bound in ("runs/jsd", "runs/warm"):
        assert re.search(r'"\w+_(bound|coarse)"', (tmp_path / bound / "metrics.jsonl").read_text())


def _metric_keys(run: Path) -> set[str]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {key for line in lines for key in keys(line)}


def test_every_setting_is_on_the_page_with_its_default_and_its_flag() -> None:
    documented = {
        place: (value, text) for place, value, text in re.findall(r"^\| `([\w.]+)` \| (.+?) \| (.+) \|$", TABLE, re.M)
    }
    flags = {flag.key: flag.name for flag in FLAGS}
    assert list(documented) == [place for place, _ in settings()]
    for place, default in settings():
        value, text = documented[place]
        plain = list(default) if isinstance(default, tuple) else default
        assert value == ("-" if default is None else f"`{json.dumps(plain)}`"), place
        assert place not in flags or f"`{flags[place]}`" in text, place


def test_choices_and_the_fields_of_list_items_are_on_the_page() -> None:
    words = {*Phase.model_fields, *PositionSelection.model_fields, *STUDENTS}
    for kind in (Statistic, OrderName, BestMetric):
        words |= set(get_args(kind))
    assert not {word for word in words if f"`{word}`" not in PAGE}
    assert ",".join(get_args(TrackerName)) in PAGE


def test_the_guard_presets_on_the_page_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w[\w-]+)` \| (.+) \|$", section("Bad steps"), re.MULTILINE)
    assert [name for name, _ in rows] == list(PRESETS)
    for name, cells in rows:
        values = PRESETS[name]
        expected = (values.clip, values.lr_factor, values.skip_gradient_norm, values.patience, values.snapshot_every)
        assert cells.split(" | ") == ["-" if value is None else str(value) for value in expected]


def test_the_page_shows_the_example_file() -> None:
    example = (ROOT / "examples" / "curriculum.yaml").read_text(encoding="utf-8")
    assert blocks("yaml") == [re.sub(r"\A(#.*\n)+", "", example)]


def test_settings_outside_the_identity_of_a_run_are_listed() -> None:
    listed = " ".join(PAGE.split()).partition("Not part of a run's identity")[2].partition("Every other setting is.")[0]
    free = {name.removeprefix("settings.").rstrip(".") for name in MAY_DIFFER if name.startswith("settings.")}
    assert set(re.findall(r"`([a-z_.]+)`", listed)) == free | {"run.batch_size", "run.accumulate"}
