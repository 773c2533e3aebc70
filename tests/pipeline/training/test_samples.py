"""Texts of the student during a run: samples.jsonl, resumed runs, and weights that do not depend on it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kdpipe.cache.opening import open_cache
from kdpipe.pipeline.generation.cache_prompts import cache_prompts
from kdpipe.pipeline.generation.text_generator import TextGenerator
from kdpipe.pipeline.training.samples import FILE
from kdpipe.schemas.errors import Interrupted
from support.recording import RecordingProgress
from support.stage_two import Stopping, make_cache, run, settings_for, weights

SAMPLES = {"every": 2, "limit": 1, "samples": 3, "sample_tokens": 6}
HIDDEN = {"losses": {"allow_coarse": True, "weights": {"cosine": 0.1}}}
PURE = {"machine": {"device": "cpu", "threads": 1, "precision": "fp16-pure"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    make_cache(folder)
    return folder


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / FILE).read_text(encoding="utf-8").splitlines()]


def shaped(folder: Path, out: str, **changes: Any) -> Any:
    return settings_for(folder, out, **({"evaluation": SAMPLES} | changes))


def test_each_evaluation_continues_the_same_prompts(folder: Path) -> None:
    report = run(shaped(folder, "run"))
    written = lines(folder / "run")
    assert [line["step"] for line in written] == [2, 4, 6]
    prompts = cache_prompts(open_cache(folder / "cache", "validation"), 3)
    for line in written:
        assert [sample["document"] for sample in line["samples"]] == [prompt.document for prompt in prompts]
        assert all(sample["n_tokens"] <= 6 and sample["prompt"] for sample in line["samples"])
    assert report.samples is not None and report.samples.model_dump(mode="json") == written[-1]


@pytest.mark.parametrize("changes", [{}, HIDDEN, PURE], ids=["plain", "hidden", "fp16-pure"])
def test_a_student_is_bit_identical_with_and_without_samples(folder: Path, changes: dict[str, Any]) -> None:
    name = "-".join(changes) or "plain"
    for n_samples in (0, 3):
        run(shaped(folder, f"{name}-{n_samples}", evaluation=SAMPLES | {"samples": n_samples}, **changes))
    assert not (folder / f"{name}-0" / FILE).exists()
    without, sampled = (weights(folder / f"{name}-{n_samples}") for n_samples in (0, 3))
    assert without.keys() == sampled.keys()
    assert all(torch.equal(without[key], sampled[key]) for key in without)
    assert len(lines(folder / f"{name}-3")) == 3


def test_an_adapter_in_training_is_sampled_and_unchanged_by_it(folder: Path) -> None:
    run(shaped(folder, "base"))
    lora = {"name": str(folder / "base" / "final"), "lora": True, "lora_dropout": 0.1}
    files = []
    for n_samples in (0, 3):
        out = f"lora-{n_samples}"
        changes = {"student": lora, "optimizer": {"rates": {}}, "evaluation": SAMPLES | {"samples": n_samples}}
        run(shaped(folder, out, **changes))
        files.append((folder / out / "final" / "adapter_model.safetensors").read_bytes())
    assert files[0] == files[1]
    assert len(lines(folder / "lora-3")) == 3


@pytest.mark.parametrize("step", [2, 3, 5])
def test_a_resumed_run_has_each_line_once(folder: Path, step: int) -> None:
    run(shaped(folder, "whole"))
    settings = shaped(folder, f"stopped-{step}", saving={"every": 4})
    with pytest.raises(Interrupted):
        run(settings, Stopping(step, 2))
    path = folder / f"stopped-{step}" / FILE
    with path.open("ab") as file:
        file.write(b'{"samples":[],"step":6}\n{"samples":[')  # of a run that was killed
    run(settings)
    assert path.read_bytes() == (folder / "whole" / FILE).read_bytes()


def test_samples_may_be_turned_off_when_a_run_is_resumed(folder: Path) -> None:
    with pytest.raises(Interrupted):
        run(shaped(folder, "off"), Stopping(3, 2))
    report = run(shaped(folder, "off", evaluation=SAMPLES | {"samples": 0}))
    assert [line["step"] for line in lines(folder / "off")] == [2]
    assert report.samples is None


def test_a_model_that_cannot_generate_text_is_trained_without_samples(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: Any, **named: Any) -> None:
        raise TypeError("no cache\nof keys")

    monkeypatch.setattr(TextGenerator, "generate", refuse)
    progress = RecordingProgress()
    report = run(shaped(folder, "refused"), progress)
    assert [text for text in progress.warnings if "TypeError" in text and "no cache" in text] == progress.warnings
    assert len(progress.warnings) == 1
    assert report.samples is None and report.steps == 6


def test_a_model_that_is_out_of_memory_ends_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **named: Any) -> None:
        raise torch.OutOfMemoryError("too little")

    monkeypatch.setattr(TextGenerator, "generate", refuse)
    with pytest.raises(Exception, match="out of memory"):
        run(shaped(folder, "memory"))


def test_prompts_are_cut_to_the_positions_of_the_student(folder: Path) -> None:
    config = json.loads(settings_student(folder).read_text())
    small = folder / "small.json"
    small.write_text(json.dumps(config | {"max_position_embeddings": 96}))
    changes = {"student": {"name": str(small)}, "evaluation": SAMPLES | {"sample_tokens": 90}}
    run(shaped(folder, "small", **changes))
    assert all(sample["n_tokens"] <= 48 for line in lines(folder / "small") for sample in line["samples"])


def settings_student(folder: Path) -> Path:
    return Path(str(settings_for(folder).student.name))
