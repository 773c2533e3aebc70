"""Every finding about a run, each on a run that shows it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdpipe.pipeline.diagnosis.run_checks import check_run
from kdpipe.schemas.errors import ConfigError

Line = dict[str, Any]
N = 100


def step(n: int) -> Line:
    term = {"raw": 4.0, "weight": 0.5, "weighted": 2.0, "share": 0.5}
    rate = 1e-3 * (1 - n / N)
    return {
        "step": n + 1, "loss": 4.0 - n / N, "terms": {"ce": {**term}, "forward_kl": {**term}}, "temperature": 1.0,
        "rates": {"matrices": rate, "vectors": rate}, "verdict": "accept", "memory_bytes": 10**9, "waiting_share": 0.01,
    }  # fmt: skip


def run_with(folder: Path, change: Callable[[int, Line], object], *more: Line) -> Path:
    (folder / "final").mkdir(parents=True)
    (folder / "config.yaml").write_text("schedule:\n  kind: cosine\n", encoding="utf-8")
    lines = [step(n) for n in range(N)]
    for n, line in enumerate(lines):
        change(n, line)
    texts = [json.dumps(line) + "\n" for line in (*lines, *more)]
    (folder / "metrics.jsonl").write_text("".join(texts), encoding="utf-8")
    return folder


def test_a_healthy_run_has_no_finding(tmp_path: Path) -> None:
    evaluation = {"step": N, "evaluation": {"loss": 3.1}}
    assert {c.level for c in check_run(run_with(tmp_path, lambda n, line: None, evaluation))} == {"ok"}


@pytest.mark.parametrize(
    ("name", "level", "change", "more"),
    [
        ("loss", "problem", lambda n, line: line.update(loss=3.0 + n), ()),
        ("learning rate", "problem", lambda n, line: line["rates"].update(vectors=0.0), ()),
        ("schedule", "warning", lambda n, line: line["rates"].update(matrices=1e-3), ()),
        ("terms", "warning", lambda n, line: line["terms"]["ce"].update(share=0.001), ()),
        ("temperature", "warning", lambda n, line: line["terms"].update(jsd_coarse=line["terms"].pop("ce")), ()),
        ("validation", "warning", lambda n, line: None, ({"step": N, "evaluation": {"loss": 9.0}},)),
        ("skips", "problem", lambda n, line: line.update(verdict="skip") if n % 5 == 0 else None, ()),
        ("memory", "warning", lambda n, line: line.update(memory_bytes=10**9 + n * 10**8), ()),
        ("data", "warning", lambda n, line: line.update(waiting_share=0.6), ()),
    ],
)
def test_a_run_with_this_finding(
    name: str, level: str, change: Callable[[int, Line], object], more: tuple[Line, ...], tmp_path: Path
) -> None:
    found = [check for check in check_run(run_with(tmp_path, change, *more)) if check.level != "ok"]
    assert [(check.name, check.level) for check in found] == [(name, level)]
    assert found[0].do


def test_a_short_run_has_no_trend(tmp_path: Path) -> None:
    run = run_with(tmp_path, lambda n, line: line.update(verdict="undone") if n > 4 else None)
    assert "5 steps" in check_run(run)[0].what


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        check_run(tmp_path)
