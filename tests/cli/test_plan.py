"""`kdpipe plan`: what it hands to the story, and how it shows the sums.

The story is replaced by one that writes down what it is given: this is the border between words and verbs.
"""

import json
import sys
from types import ModuleType
from typing import Any

import pytest

import kdpipe.pipeline
from kdpipe.cli.main import run
from kdpipe.schemas.capture_report import MemoryEstimate, PlanReport, ProbeReport
from kdpipe.schemas.capture_settings import CaptureSettings

PLANNED = PlanReport(
    teacher="teacher",
    n_parameters=100_000_000,
    documents={"train": 98, "validation": 2},
    positions={"train": 980_000, "validation": 20_000},
    sequences=500,
    parts={"train": 31, "validation": 1},
    positions_per_part=32_768,
    entries_per_position=14.8,
    bytes_per_position={"total": 23.2, "id": 15.6, "logprob": 2.0, "scalars": 4.7, "count": 0.9},
    bytes=23_200_000,
    second_caches={"2.0": 61_000_000},
    memory=MemoryEstimate(
        weights=400_000_000,
        activations=50_000_000,
        logits_chunk=20_000_000,
        waiting_rows=2_000_000,
        writer=6_000_000,
        total=478_000_000,
    ),
    probe=None,
    workers=1,
    hours=None,
    break_even_runs=None,
    notes=("the model's context is 2,048 tokens",),
)


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the story was given, by the name of what it was; it answers with `plan` of it."""
    seen: dict[str, Any] = {"plan": PLANNED}

    def plan(settings: CaptureSettings, *, tokens: int | None, probe_seconds: float | None, progress: Any) -> Any:
        seen.update(settings=settings, tokens=tokens, probe_seconds=probe_seconds, progress=progress)
        return seen["plan"]

    module = ModuleType("kdpipe.pipeline.plan")
    module.plan = plan  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(kdpipe.pipeline, "plan", module, raising=False)
    return seen


def test_a_plan_is_shown_with_bars(handed: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--teacher", "t", "--data", "d", "--seq-len", "64"]) == 0
    assert handed["settings"].sequences.length == 64
    assert (handed["tokens"], handed["probe_seconds"]) == (None, None)
    text = capsys.readouterr().out
    for reported in (
        "parameters  100,000,000", "documents   100: 98 train, 2 validation", "parts       32: 31 train, 1 validation",
        "32,768 positions", "14.8 per position", "bytes per position    23.20", "23.2 MB for all parts",
        "61.0 MB for one more cache with --target-temperature 2", "478.0 MB",
        "use --probe", "note: the model's context is 2,048 tokens",
    ):  # fmt: skip
        assert reported in text, reported
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("█") + text.count("#") > 60


def test_a_probe_reports_the_time(handed: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    probe = ProbeReport(positions_per_second=2000.0, seconds=30.0, overhead_ratio=1.08, entries_per_position=12.5)
    handed["plan"] = PLANNED.model_copy(update={"probe": probe, "hours": 1.25, "break_even_runs": 2})
    assert run(["plan", "--teacher", "t", "--tokens", "1000000", "--probe"]) == 0
    assert (handed["tokens"], handed["probe_seconds"]) == (1_000_000, 30.0)
    text = capsys.readouterr().out
    for reported in ("2,000 positions/s over 30 s, 1.08 x", "1 h 15 min\n", "after 2 student runs"):
        assert reported in text, reported
    handed["plan"] = handed["plan"].model_copy(update={"workers": 4})
    assert run(["plan", "--teacher", "t", "--tokens", "1000000", "--probe"]) == 0
    assert "1 h 15 min with 4 workers" in capsys.readouterr().out


def test_a_plan_as_a_document(handed: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--teacher", "t", "--data", "d", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == PLANNED.model_dump(mode="json")
