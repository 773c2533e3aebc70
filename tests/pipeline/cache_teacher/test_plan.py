"""A plan beside what is then made: as many parts, and about as many positions."""

from pathlib import Path
from typing import Any

import pytest

from kdpipe.pipeline.capture import plan_estimate
from kdpipe.pipeline.plan import plan
from kdpipe.schemas.capture_report import PlanReport
from kdpipe.schemas.capture_settings import CaptureSettings
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.progress import SilentProgress
from support.corpora import CHATML, chat_rows, small_tokenizer, write_jsonl
from support.models import tiny_llama
from support.stage_one import VOCABULARY, make_inputs, run, settings_for


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    make_inputs(folder)
    small_tokenizer(tiny_llama(folder / "chat", vocabulary=VOCABULARY), VOCABULARY, CHATML)
    write_jsonl(folder / "chat.jsonl", chat_rows(40))
    return folder


def planned(settings: CaptureSettings, tokens: int | None = None) -> PlanReport:
    return plan(settings, tokens=tokens, probe_seconds=None, progress=SilentProgress())


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"sequences": {"length": 64, "part_rows": 1024}},
        {"sequences": {"length": 32}, "data": {"long_documents": "truncate"}},
        {"sequences": {"length": 32, "part_rows": 256}, "data": {"long_documents": "truncate"}},
        {"sequences": {"length": 32}, "data": {"path": "chat.jsonl"}, "teacher": {"name": "chat"}},
        {"sequences": {"pack": False}, "targets": {"kind": "topk", "top_k": 8}},
    ],
    ids=["parts", "truncated", "truncated parts", "conversations", "alone"],
)
def test_what_is_planned_is_made(
    folder: Path, tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    settings = settings_for(folder, **changes).model_copy(update={"out": str(tmp_path / "cache")})
    ahead, made = planned(settings), run(settings)
    assert sum(ahead.parts.values()) == made.parts.planned
    assert sum(ahead.positions.values()) == pytest.approx(made.positions, rel=0.1)


@pytest.mark.slow
def test_a_plan_for_more_tokens_is_in_proportion(folder: Path) -> None:
    settings = settings_for(folder)
    small, large = planned(settings), planned(settings, tokens=10_000_000)
    factor = 10_000_000 / sum(small.positions.values())
    assert large.bytes == pytest.approx(small.bytes * factor, rel=0.05)
    assert sum(large.parts.values()) == pytest.approx(64, abs=2)


@pytest.mark.slow
def test_a_plan_prices_a_cache_for_each_other_temperature(folder: Path) -> None:
    first = planned(settings_for(folder, targets={"temperatures": (2.0,)}))
    second = planned(settings_for(folder, targets={"temperatures": (2.0,), "target_temperature": 2.0}))
    assert first.second_caches == {"2.0": second.bytes}
    assert second.bytes > 1.2 * first.bytes
    assert planned(settings_for(folder, targets={"kind": "topk"})).second_caches == {}


@pytest.mark.slow
def test_workers_share_the_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_estimate, "worker_settings", lambda settings: [settings] * 3)
    report = plan(settings_for(folder), tokens=1_000_000, probe_seconds=0.1, progress=SilentProgress())
    assert report.probe is not None and report.hours is not None
    alone = sum(report.positions.values()) / report.probe.positions_per_second / 3600
    assert (report.workers, report.hours) == (3, pytest.approx(alone / 3))


def test_what_cannot_be_planned_is_refused(folder: Path) -> None:
    nothing = settings_for(folder, data={"path": None})
    with pytest.raises(ConfigError, match="nothing to plan"):
        planned(nothing)
    with pytest.raises(ConfigError, match="--probe needs documents"):
        plan(nothing, tokens=100, probe_seconds=1.0, progress=SilentProgress())
    with pytest.raises(ConfigError, match=r"--probe: targets.*kind"):
        plan(settings_for(folder, targets={"kind": "none"}), tokens=None, probe_seconds=1.0, progress=SilentProgress())
