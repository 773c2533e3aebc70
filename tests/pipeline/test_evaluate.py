"""`evaluate` from a cache and a folder to the report, and everything that is refused on the way."""

import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from kdpipe.cache import open_cache
from kdpipe.pipeline.evaluate import EvalRequest, evaluate
from kdpipe.pipeline.evaluation.measure import Evaluator
from kdpipe.pipeline.evaluation.stored import CONFIG
from kdpipe.pipeline.models.precision import PRECISIONS
from kdpipe.pipeline.students.presets import TokenIds
from kdpipe.pipeline.students.saving import save_student
from kdpipe.schemas.errors import CacheDamaged, CacheIncomplete, ConfigError, Incompatible
from kdpipe.schemas.progress import SilentProgress
from support.corpora import small_tokenizer
from support.eval_twin import numbers_of, rows_of
from support.lm_task import local_task
from support.models import tiny_llama, with_own_code
from support.recording import RecordingProgress
from support.stage_one import make_inputs, run, settings_for
from support.students import student
from support.tiny import flip_bit

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two caches of a small teacher, and a student of its family."""
    path = tmp_path_factory.mktemp("evaluate")
    make_inputs(path)
    run(settings_for(path))
    run(settings_for(path, out="bare", targets={"kind": "none"}))
    small_tokenizer(tiny_llama(path / "student", hidden=32, layers=1, seed=5), vocabulary=512)
    return path


def requested(folder: Path, cache: str = "cache", name: str = "student", **changes: object) -> EvalRequest:
    return replace(EvalRequest(cache=str(folder / cache), student=str(folder / name), device="cpu"), **changes)


def test_a_student_is_measured_on_the_validation_split(folder: Path) -> None:
    report = evaluate(requested(folder), SilentProgress())
    cache = open_cache(folder / "cache", "validation")
    due = numbers_of(rows_of(student(folder / "student").model, cache, range(len(cache))))
    for name, value in due.items():
        assert getattr(report, name) == pytest.approx(value, rel=2e-5, abs=2e-5), name
    assert report.kl_teacher_estimate == "unbiased"
    assert report.settings.cache_id == cache.cache_id
    assert report.settings.sequences == len(cache)
    assert report.settings.documents == len({int(n) for i in range(len(cache)) for n in cache[i].documents})
    assert (report.settings.split, report.settings.precision, report.settings.device) == ("validation", "fp32", "cpu")
    assert report.tasks == {}
    assert report.notes == ()


@pytest.mark.slow
def test_the_teacher_itself_is_as_near_as_draws_let_it_be(folder: Path) -> None:
    report = evaluate(requested(folder, name="teacher"), SilentProgress())
    assert report.kl_teacher is not None
    assert abs(report.kl_teacher) < 0.1
    assert report.top1_agreement is not None
    assert report.top1_agreement > 0.99


def test_another_split_and_a_limit_are_what_they_say(folder: Path) -> None:
    report = evaluate(requested(folder, split="train", limit=3), SilentProgress())
    assert (report.settings.split, report.settings.sequences, report.settings.limit) == ("train", 3, 3)


@pytest.mark.slow
def test_a_run_is_evaluated_as_its_final_student(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / CONFIG).write_text("seed: 0\n")
    shutil.copytree(folder / "student", tmp_path / "run" / "final")
    found = evaluate(requested(folder, name=str(tmp_path / "run")), SilentProgress())
    assert found.cross_entropy == evaluate(requested(folder), SilentProgress()).cross_entropy
    assert found.settings.student == str(tmp_path / "run")


def test_without_targets_there_are_numbers_of_labels_alone(folder: Path) -> None:
    report = evaluate(requested(folder, cache="bare"), SilentProgress())
    assert report.kl_teacher is report.kl_teacher_estimate is report.top1_agreement is None
    assert report.cross_entropy == pytest.approx(evaluate(requested(folder), SilentProgress()).cross_entropy, rel=1e-6)
    assert len(report.notes) == 1 and "no targets" in report.notes[0]


@pytest.mark.slow
def test_a_lower_bound_is_called_one(folder: Path) -> None:
    run(settings_for(folder, out="topk", targets={"kind": "topk", "top_k": 4}))
    report = evaluate(requested(folder, cache="topk"), SilentProgress())
    assert report.kl_teacher_estimate == "lower_bound"
    assert report.notes[0].startswith("KL to the teacher is a lower bound")


@pytest.mark.slow
def test_an_unfinished_cache_is_refused_unless_it_is_allowed(folder: Path, tmp_path: Path) -> None:
    cut = shutil.copytree(folder / "cache", tmp_path / "cut")
    (cut / "index.parquet").unlink()
    n_parts = len(list((cut / "parts").iterdir()))
    shutil.rmtree(cut / "parts/00000")
    with pytest.raises(CacheIncomplete, match=f"is unfinished: 1 of {n_parts} parts are missing"):
        evaluate(requested(folder, cache=str(cut)), SilentProgress())
    report = evaluate(requested(folder, cache=str(cut), allow_partial=True), SilentProgress())
    assert report.notes == (f"the cache is unfinished: 1 of {n_parts} parts are missing",)
    assert report.settings.cache_id is None


@pytest.mark.slow
def test_damage_is_named_with_its_part_and_file(folder: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(folder / "cache", tmp_path / "damaged")
    validation = open_cache(damaged, "validation").parts[0].part
    flip_bit(damaged / f"parts/{validation:05d}/targets.zarr/id/c/0", 20)
    with pytest.raises(CacheDamaged, match=f"parts/{validation:05d}/targets.zarr/id"):
        evaluate(requested(folder, cache=str(damaged)), SilentProgress())


@pytest.mark.slow
def test_a_split_that_is_not_there_is_named_with_those_that_are(folder: Path) -> None:
    run(settings_for(folder, out="whole", data={"val_fraction": 0.0}))
    with pytest.raises(ConfigError, match="has no split 'validation'") as caught:
        evaluate(requested(folder, cache="whole"), SilentProgress())
    assert caught.value.hint == "its splits are train"


def test_a_student_with_another_tokenizer_does_not_fit(folder: Path, tmp_path: Path) -> None:
    other = small_tokenizer(tiny_llama(tmp_path / "other", vocabulary=400), vocabulary=400)
    with pytest.raises(Incompatible, match="tokenizer of student"):
        evaluate(requested(folder, name=str(other)), SilentProgress())


def test_a_fresh_student_is_not_measured(folder: Path) -> None:
    with pytest.raises(ConfigError, match="student tiny is randomly initialized"):
        evaluate(replace(requested(folder), student="tiny"), SilentProgress())


@pytest.mark.slow
def test_notable_events_are_reported(folder: Path, tmp_path: Path) -> None:
    padded = small_tokenizer(tiny_llama(tmp_path / "padded", vocabulary=520, hidden=32, layers=1), vocabulary=512)
    progress = RecordingProgress()
    evaluate(requested(folder, name=str(padded)), progress)
    n_sequences = len(open_cache(folder / "cache", "validation"))
    done = [update.done for update in progress.updates["evaluate"]]
    assert done[-1] == progress.tasks["evaluate"].total == n_sequences and done == sorted(done)
    assert any("520 embedding rows for 512 token ids" in line for line in progress.messages)
    assert any("parameters" in line for line in progress.messages)


@pytest.mark.slow
def test_code_of_a_students_own_runs_only_when_trusted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = with_own_code(folder / "student", tmp_path / "own")
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    plain = evaluate(requested(folder), SilentProgress()).cross_entropy
    assert evaluate(requested(folder, name=str(own)), SilentProgress()).cross_entropy == plain
    trusted = evaluate(requested(folder, name=str(own), trust_remote_code=True), SilentProgress()).cross_entropy
    assert abs(trusted - plain) > 1e-3


def test_a_revision_is_of_the_hub_and_never_of_an_adapter(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no revision v1"):
        evaluate(requested(folder, revision="v1"), SilentProgress())
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base", "revision": "abc"}')
    with pytest.raises(ConfigError, match="is an adapter"):
        evaluate(requested(folder, name=str(tmp_path), revision="v1"), SilentProgress())


@pytest.mark.slow
def test_an_adapter_is_measured_in_its_base(folder: Path, tmp_path: Path) -> None:
    train_state = student(folder / "student", TokenIds(count=512, longest=96), lora=True)
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in train_state.trainable().values():
            parameter.normal_(std=0.3, generator=drawn)
    save_student(train_state, tmp_path / "run" / "final", {}, "")
    (tmp_path / "run" / CONFIG).write_text("seed: 0\n")
    cache = open_cache(folder / "cache", "validation")
    due = Evaluator(cache, None, batch_size=8).measure(train_state, PRECISIONS["fp32"])
    found = evaluate(requested(folder, name=str(tmp_path / "run")), SilentProgress())
    assert found.cross_entropy == pytest.approx(due.cross_entropy, rel=1e-5)
    assert found.cross_entropy != pytest.approx(evaluate(requested(folder), SilentProgress()).cross_entropy, rel=1e-3)


@pytest.mark.slow
def test_tasks_stand_beside_the_numbers(folder: Path, tmp_path: Path) -> None:
    path, _ = local_task(tmp_path / "task", "mine")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own
        report = evaluate(requested(folder, tasks=(str(path),)), SilentProgress())
    assert 0 <= report.tasks["mine"]["acc"] <= 1
