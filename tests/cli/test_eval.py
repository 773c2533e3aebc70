"""`kdpipe eval`: the request that its options become, and its page.

The pipeline is replaced by a function that records the request.
"""

import json
import sys
from types import ModuleType
from typing import Any

import pytest

import kdpipe.pipeline
from kdpipe.cli.main import run
from kdpipe.pipeline.evaluate import EvalRequest
from kdpipe.schemas.errors import ConfigError
from kdpipe.schemas.train_report import Bucket, EvalReport, EvalSettings

BUCKET = Bucket(
    from_nats=4.0,
    to_nats=None,
    positions=1_234,
    cross_entropy=5.0,
    kl_teacher=0.5,
    top1_agreement=0.25,
    ece=0.01,
)
EMPTY = Bucket(
    from_nats=0.0, to_nats=4.0, positions=0, cross_entropy=None, kl_teacher=None, top1_agreement=None, ece=None
)
MEASURED = EvalReport(
    cross_entropy=3.25,
    perplexity=25.79,
    kl_teacher=0.7512,
    kl_teacher_estimate="unbiased",
    top1_agreement=0.61234,
    ece=0.0312,
    positions=12_345,
    by_entropy=(EMPTY, BUCKET),
    tasks={"mine": {"acc": 0.5, "acc_stderr": 0.1}},
    settings=EvalSettings(
        cache="teacher-cache",
        cache_id="c" * 8,
        split="validation",
        student="runs/a",
        sequences=40,
        documents=12,
        limit=None,
        device="cpu",
        precision="fp32",
    ),
    notes=("a note",),
)
WORDS = ["eval", "--from-cache", "teacher-cache", "--student", "runs/a"]


@pytest.fixture
def story(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The recorded request; `answer` is returned or `error` raised."""
    given: dict[str, Any] = {"answer": MEASURED}

    def reported(requested: EvalRequest, progress: Any) -> EvalReport:
        given["requested"] = requested
        if "error" in given:
            raise given["error"]
        answer: EvalReport = given["answer"]
        return answer

    module: Any = ModuleType("kdpipe.pipeline.evaluate")
    module.evaluate, module.EvalRequest = reported, EvalRequest
    monkeypatch.setitem(sys.modules, "kdpipe.pipeline.evaluate", module)
    monkeypatch.setattr(kdpipe.pipeline, "evaluate", module, raising=False)
    return given


def test_options_become_a_request(story: dict[str, Any]) -> None:
    assert run(WORDS) == 0
    assert story["requested"] == EvalRequest(cache="teacher-cache", student="runs/a")
    more = ["--split", "train", "--limit", "7", "--tasks", "a, b.yaml,", "--allow-partial"]
    assert run([*WORDS, *more, "--devices", "cuda:1", "--batch-size", "3"]) == 0
    assert story["requested"] == EvalRequest(
        cache="teacher-cache",
        student="runs/a",
        split="train",
        limit=7,
        tasks=("a", "b.yaml"),
        allow_partial=True,
        device="cuda:1",
        batch_size=3,
    )


PAGE = """\
runs/a
  cache       teacher-cache, validation, cccccccc
  positions   12,345 in 40 sequences, 12 documents
  CE          3.2500 nats, perplexity 25.79
  KL          0.7512 nats to the teacher, unbiased estimate
  top-1       agreement with the teacher 61.23%
  calibration expected calibration error (ECE) 3.12%

  by teacher entropy, in nats
         from         to  positions         CE         KL  agreement        ECE
            0          4          0          -          -          -          -
            4                 1,234     5.0000     0.5000     25.00%      1.00%

  mine
  acc         0.5
  acc_stderr  0.1
note: a note
"""


def test_the_page_has_every_number(story: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(WORDS) == 0
    assert capsys.readouterr().out == PAGE


def test_unavailable_metrics_are_left_out(story: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    unknown = {"kl_teacher": None, "kl_teacher_estimate": None, "top1_agreement": None, "perplexity": None}
    story["answer"] = MEASURED.model_copy(update={**unknown, "by_entropy": (), "tasks": {}})
    assert run(WORDS) == 0
    out = capsys.readouterr().out
    assert "KL" not in out
    assert "agreement" not in out
    assert "entropy" not in out
    assert "perplexity too large" in out


def test_json_has_its_documented_keys(story: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*WORDS, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) >= {
        "cross_entropy", "perplexity", "kl_teacher", "kl_teacher_estimate", "top1_agreement", "ece", "positions",
    }  # fmt: skip
    assert answer == MEASURED.model_dump(mode="json")


def test_refusals_are_two_lines(story: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    story["error"] = ConfigError("no such split", hint="its splits are train")
    assert run(WORDS) == 2
    assert capsys.readouterr().err == "error: no such split\nhint: its splits are train\n"
    for words, what in (
        (WORDS[:3], "--student"),
        ([*WORDS, "--limit", "0"], "--limit"),
        ([*WORDS, "--split", "x"], "--split"),
    ):
        assert run(words) == 2
        assert what in capsys.readouterr().err
