"""What a run refuses leaves nothing behind, and what stops it loses nothing: the folder, and memory that runs out."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kdpipe.pipeline.training import loop, run_inputs
from kdpipe.schemas.errors import ConfigError, Incompatible, KdpipeError
from support.stage_two import losses, make_cache, run, settings_for


def small(folder: Path, out: str, **changes: dict[str, Any]) -> Any:
    """Settings of a run without dropout, so that its numbers do not hang on the split into batches."""
    settings = settings_for(folder, out, **{"evaluation": {"every": 6, "limit": 2}, **changes})
    config = json.loads((folder / "student.json").read_text()) | {"attention_dropout": 0.0}
    (folder / "sure.json").write_text(json.dumps(config))
    student = settings.student.model_copy(update={"name": str(folder / "sure.json")})
    return settings.model_copy(update={"student": student})


@pytest.mark.slow
def test_a_run_out_of_memory_resumes_in_smaller_micro_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(small(folder, "enough"))
    step = loop.forward_backward
    calls = []

    def fail_in_the_fifth(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return step(*given)

    monkeypatch.setattr(loop, "forward_backward", fail_in_the_fifth)
    with pytest.raises(KdpipeError, match=r"memory.*step 5: CUDA.*memory. Tried") as raised:
        run(small(folder, "short"))
    assert raised.value.exit_code == 1
    assert "--set machine.portion=1 or --set student.gradient" in str(raised.value.hint)
    report = run(small(folder, "short", machine={"portion": 1}))
    assert (report.steps, report.resumed_from) == (6, 3)
    for (step_a, a), (step_b, b) in zip(losses(folder / "enough"), losses(folder / "short"), strict=True):
        assert step_a == step_b
        assert a == pytest.approx(b, rel=1e-5)


def test_a_refusal_before_the_first_step_leaves_no_folder(folder: Path) -> None:
    with pytest.raises(Incompatible, match="teacher layer 9"):
        run(settings_for(folder, "none", losses={"weights": {"cosine": 0.1}, "hidden": {"pairs": ["1:9"]}}))
    with pytest.raises(ConfigError, match="has no checkpoint 3"):
        run(settings_for(folder, "none"), resume_from="3")
    assert not (folder / "none").exists()


def test_resume_from_excludes_overwrite_and_dry_run(folder: Path) -> None:
    run(settings_for(folder, "kept", run={"max_steps": 2}))
    there = sorted((folder / "kept").rglob("*"))
    for other in ("overwrite", "dry_run"):
        with pytest.raises(ConfigError, match=r"--resume-from .* --(overwrite|dry-run)") as raised:
            run(settings_for(folder, "kept", run={"max_steps": 2}), resume_from="2", **{other: True})
        assert raised.value.exit_code == 2
    assert sorted((folder / "kept").rglob("*")) == there


def test_a_dry_run_refuses_the_folder_that_the_run_would_refuse(folder: Path) -> None:
    run(settings_for(folder, "taken", run={"max_steps": 1}))
    with pytest.raises(ConfigError, match=r"lengthen.*run.*1 step"):
        run(settings_for(folder, "taken"), dry_run=True)


SURE = {"term": "ce", "by": "teacher_entropy", "keep": "lowest", "share": 0.5}
LIKELY = {**SURE, "by": "label_logprob"}
OF_THE_TEACHER = {**SURE, "term": "kd"}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"losses": {"select": [SURE]}}, Incompatible, "teacher_entropy"),
        ({"losses": {"select": [LIKELY]}}, Incompatible, "label_logprob"),
        ({"losses": {"select": [OF_THE_TEACHER]}}, ConfigError, "positions for kd, which has no weight at any step"),
        ({"evaluation": {"metric": "kl_teacher"}}, Incompatible, "metric is kl_teacher, which cannot be computed"),
        ({"evaluation": {"metric": "top1_agreement"}}, Incompatible, "metric is top1_agreement, which cannot be"),
    ],
    ids=str,
)
def test_settings_that_need_targets_are_refused_for_a_cache_of_tokens(
    tokens: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    losses = {"mode": "output", **changes.get("losses", {})}
    with pytest.raises(error, match=message):
        run(settings_for(tokens, "never", kept="tokens", **{**changes, "losses": losses}))
    assert not (tokens / "never").exists()


def test_saving_the_best_needs_a_validation_split(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_inputs, "open_validation", lambda _: None)
    with pytest.raises(ConfigError, match=r"saving\.final is best.*validation split") as refused:
        run(settings_for(folder, "never", saving={"final": "best"}))
    assert "--val-fraction" in str(refused.value.hint)


@pytest.fixture(scope="module")
def tokens(folder: Path) -> Path:
    make_cache(folder, "tokens", targets={"kind": "none", "temperatures": ()}, hidden={"pooled": False, "layers": ()})
    return folder
