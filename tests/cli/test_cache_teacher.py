"""`kdpipe cache-teacher`: the settings it passes on, and its report.

The story is replaced by one that writes down what it is given: this is the border between words and verbs.
"""

import json
import sys
from types import ModuleType
from typing import Any

import pytest

import kdpipe.pipeline
from kdpipe.cache.stores.retries import RETRY_SECONDS
from kdpipe.cli.main import run
from kdpipe.schemas.capture_report import CaptureReport, PartCounts
from kdpipe.schemas.capture_settings import CaptureOptions, CaptureSettings
from kdpipe.schemas.summary import CacheSizes, FidelitySummary

WORDS = ["--teacher", "teacher", "--data", "a.jsonl", "--out", "cache"]
PLAIN = CaptureReport(
    cache="cache",
    cache_id="ab12",
    complete=True,
    parts=PartCounts(planned=3, present=3, made=2),
    positions=1_234_567,
    bytes=28_900_000,
    sizes=CacheSizes(parts=28_000_000, tokenizer=800_000, tables=90_000, records=10_000, journal=500),
    bytes_per_position=23.4,
    entries_per_position=14.8,
    positions_per_second=45_000.0,
    teacher_share=0.913,
    batches_halved=0,
    bad_rows=0,
    cut_documents=0,
    fidelity=None,
    seconds=83.0,
)


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the story was given, by the name of what it was; it answers with `report` of it."""
    seen: dict[str, Any] = {"report": PLAIN}

    def cache_teacher(settings: CaptureSettings, options: CaptureOptions, progress: Any) -> Any:
        seen.update(settings=settings, options=options, progress=progress)
        return seen["report"]

    module = ModuleType("kdpipe.pipeline.cache_teacher")
    module.cache_teacher = cache_teacher  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(kdpipe.pipeline, "cache_teacher", module, raising=False)
    return seen


def hand_over(*words: str) -> None:
    assert run(["cache-teacher", *WORDS, *words]) == 0


def test_the_settings_are_handed_over(handed: dict[str, Any]) -> None:
    hand_over("--targets", "topk", "--top-k", "8", "--set", "machine.threads=2")
    settings = handed["settings"]
    assert (settings.teacher.name, settings.data.path, settings.out) == ("teacher", "a.jsonl", "cache")
    assert (settings.targets.kind, settings.targets.top_k, settings.machine.threads) == ("topk", 8, 2)


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ("4/4", "--shard 4/4 is out of range: shards are counted from 0\nhint: the last of 4 is 3/4\n"),
        ("1", "--shard 1 is not of the form I/N\nhint: for the first of four workers, use --shard 0/4\n"),
        ("0/0", "--shard 0/0 is not of the form I/N\nhint: for the first of four workers, use --shard 0/4\n"),
        ("-1/2", "--shard -1/2 is not of the form I/N\nhint: for the first of four workers, use --shard 0/4\n"),
    ],
)
def test_a_shard_that_does_not_exist_is_refused(
    shard: str, message: str, handed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["cache-teacher", *WORDS, "--shard", shard]) == 2
    assert capsys.readouterr().err == f"error: {message}"
    assert "settings" not in handed


def test_what_this_run_is_to_do_is_handed_over(handed: dict[str, Any]) -> None:
    hand_over()
    assert handed["options"] == CaptureOptions() and CaptureOptions().retry_for == RETRY_SECONDS
    hand_over("--shard", "3/4", "--dry-run", "--retry-for", "10m")
    assert handed["options"] == CaptureOptions(shard=3, n_shards=4, dry_run=True, retry_for=600.0)


def test_the_page_reports_the_cache(handed: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    hand_over()
    assert capsys.readouterr().out.splitlines() == [
        "cache",
        "  cache_id    ab12",
        "  parts       3 of 3, 2 from this run",
        "  positions   1,234,567, 23.4 bytes and 14.8 entries per position",
        "  size        28.9 MB: 28.0 MB parts, 800.0 kB tokenizer, 100.0 kB tables, manifest and index",
        "  time        83 s, 45,000 positions/s, 91% waiting for the teacher",
        "  fidelity    not measured",
    ]


def test_the_page_reports_deviations(handed: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    handed["report"] = PLAIN.model_copy(
        update={
            "cache_id": None,
            "complete": False,
            "parts": PartCounts(planned=9, present=5, made=2),
            "batches_halved": 2,
            "bad_rows": 3,
            "cut_documents": 4,
            "bytes_per_position": None,
            "entries_per_position": None,
            "teacher_share": None,
            "positions_per_second": None,
            "fidelity": FidelitySummary(
                rows=9,
                parts=1,
                temperature=1.0,
                kl_nats=0.01,
                kl_error=None,
                total_variation=0.04,
                total_variation_error=None,
                kept_mass={"1.0": 0.86},
                kept_mass_error={"1.0": None},
                gradient_angle_degrees=1.25,
                gradient_angle_error=None,
                gradient_batch=65_536,
                verdict="good: it is",
            ),
        }
    )
    hand_over("--dry-run")
    text = capsys.readouterr().out
    one = {"parts": PartCounts(planned=9, present=8, made=2), "bad_rows": 1, "untrainable_documents": 2}
    handed["report"] = handed["report"].model_copy(update=one)
    hand_over()
    few = capsys.readouterr().out
    for reported in (
        "  unfinished  1 part missing",
        "1 unusable row skipped, 4 longer",
        ", 2 without trained tokens skipped",
    ):
        assert reported in few, reported
    for reported in (
        "cache_id    none yet", "5 of 9, 2 from this run", "4 parts missing",
        "positions   1,234,567\n",
        "time        83 s\n", "halved 2 times", "3 unusable rows skipped, 4 longer than a sequence",
        "KL 0.0100 nats", "86.0% at T=1", "1.25 degrees", "good: it is", "dry run: OK",
    ):  # fmt: skip
        assert reported in text, reported


def test_the_document_is_the_report(handed: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    hand_over("--json")
    shown = capsys.readouterr()
    assert json.loads(shown.out) == PLAIN.model_dump(mode="json")
    assert shown.err == ""
