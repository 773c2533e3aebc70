"""`evaluate` from a cache and a folder to the report, and everything that is refused on the way."""

import gzip
import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from kdpipe.cache import open_cache
from kdpipe.pipeline.compare import CompareRequest, compare
from kdpipe.pipeline.evaluate import EvalRequest, evaluate, measure_student
from kdpipe.pipeline.evaluation import humaneval, sandbox
from kdpipe.pipeline.evaluation.measure import Evaluator
from kdpipe.pipeline.evaluation.sandbox import SandboxRefused
from kdpipe.pipeline.evaluation.stored import CONFIG, load_tasks
from kdpipe.pipeline.evaluation.teacher_metrics import teacher_metrics
from kdpipe.pipeline.models.precision import PRECISIONS
from kdpipe.pipeline.students.presets import TokenIds
from kdpipe.pipeline.students.saving import save_student
from kdpipe.schemas.errors import CacheDamaged, CacheIncomplete, ConfigError, Incompatible
from kdpipe.schemas.progress import SilentProgress
from kdpipe.schemas.train_report import TaskResults
from support.corpora import small_tokenizer
from support.eval_twin import numbers_of, rows_of
from support.evaluations import run_folder
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
    expected = numbers_of(rows_of(student(folder / "student").model, cache, range(len(cache))))
    for name, value in expected.items():
        assert getattr(report, name) == pytest.approx(value, rel=2e-5, abs=2e-5), name
    assert report.kl_teacher_estimate == "unbiased"
    assert report.settings.cache_id == cache.cache_id
    assert report.settings.sequences == len(cache)
    assert report.settings.documents == len({int(n) for i in range(len(cache)) for n in cache[i].documents})
    assert (report.settings.split, report.settings.precision, report.settings.device) == ("validation", "fp32", "cpu")
    assert report.tasks == {}
    assert report.notes == ()


@pytest.mark.slow
def test_the_teacher_has_no_kl_to_itself_beyond_sampling_noise(folder: Path) -> None:
    report = evaluate(requested(folder, name="teacher"), SilentProgress())
    assert report.kl_teacher is not None
    assert abs(report.kl_teacher) < 0.1
    assert report.top1_agreement is not None
    assert report.top1_agreement > 0.99


@pytest.mark.parametrize("limit", [None, 5])
def test_the_teachers_stored_metrics_are_those_of_the_teacher_itself(folder: Path, limit: int | None) -> None:
    cache = open_cache(folder / "cache", "validation")
    stored, model = (
        teacher_metrics(cache, limit, SilentProgress()),
        evaluate(requested(folder, name="teacher", limit=limit), SilentProgress()),
    )
    # Rounded as stored: log-probabilities of labels to 1/64 of a nat and less.
    assert stored.numbers["cross_entropy"] == pytest.approx(model.cross_entropy, abs=2e-3)
    assert stored.numbers["ece"] == pytest.approx(model.ece, abs=2e-2)
    assert stored.evaluation.positions == model.positions
    entropies = np.concatenate([rows.entropy[rows.loss_mask] for rows in map(cache.rows, range(len(cache)))])
    if limit is None:
        assert stored.numbers["teacher_entropy"] == pytest.approx(float(entropies.mean()), rel=1e-5)


def test_a_cache_without_predictions_has_no_teacher_metrics(folder: Path) -> None:
    with pytest.raises(ConfigError, match="bare"):
        teacher_metrics(open_cache(folder / "bare", "validation"), None, SilentProgress())


def test_models_and_the_teacher_are_compared_beside_runs(folder: Path, tmp_path: Path) -> None:
    request = requested(folder)
    measured = measure_student(request, SilentProgress())
    settings = {"cache": {"path": request.cache}, "losses": {"mode": "output"}}
    run_itself = str(run_folder(tmp_path / "run", settings, measured.model_copy(update={"step": 3, "loss": 1.0})))
    report = compare(CompareRequest(names=[run_itself, request.student], teacher=True, device="cpu"))
    first, model, teacher = report.runs
    assert [(one.kind, one.step) for one in report.runs] == [("run", 3), ("model", None), ("teacher", None)]
    assert model.numbers == {name: value for name, value in first.numbers.items() if name != "loss"}
    assert model.differences["cross_entropy"].value == 0
    assert set(teacher.differences) == {"cross_entropy", "ece"}
    assert first.best == model.best == teacher.best == ()
    with_cache = compare(CompareRequest(names=[request.student], teacher=True, cache=request.cache, device="cpu"))
    assert [one.kind for one in with_cache.runs] == ["model", "teacher"]


def test_split_and_limit_are_in_the_report(folder: Path) -> None:
    report = evaluate(requested(folder, split="train", limit=3), SilentProgress())
    assert (report.settings.split, report.settings.sequences, report.settings.limit) == ("train", 3, 3)


def test_humaneval_is_measured_and_kept_with_the_student_of_a_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = tmp_path / "problems.jsonl.gz"
    values = {"task_id": "a", "prompt": "def f():\n", "entry_point": "f", "canonical_solution": "    return 1\n"}
    test = "def check(candidate):\n    assert candidate() == 1\n"
    lines = [json.dumps(values | {"task_id": str(n), "test": test}) + "\n" for n in range(3)]
    problems.write_bytes(gzip.compress("".join(lines).encode()))
    monkeypatch.setattr(humaneval, "problems_file", lambda: problems)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / CONFIG).write_text("seed: 0\n")
    shutil.copytree(folder / "student", tmp_path / "run" / "final")
    request = requested(folder, name=str(tmp_path / "run"), tasks=("humaneval",), limit=2, unsafe_no_sandbox=True)
    report = evaluate(request, SilentProgress())
    assert report.tasks == {"humaneval": {"pass@1": 0.0, "pass@1_stderr": 0.0, "problems": 2.0}}
    assert load_tasks(tmp_path / "run") == TaskResults(metrics=report.tasks, limits={"humaneval": 2})


def test_programs_without_a_sandbox_are_refused_and_so_is_the_switch_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object, **named: object) -> None:
        raise SandboxRefused("unshare: Operation not permitted")

    monkeypatch.setattr(humaneval, "problems_file", lambda: folder / "problems.jsonl.gz")
    monkeypatch.setattr(sandbox, "run_test", refuse)
    with pytest.raises(ConfigError) as caught:
        evaluate(requested(folder, name="missing", tasks=("humaneval",)), SilentProgress())
    assert "unshare" in caught.value.message and "--unsafe-no-sandbox" in str(caught.value.hint)
    with pytest.raises(ConfigError) as caught:
        evaluate(requested(folder, unsafe_no_sandbox=True), SilentProgress())
    assert "--unsafe-no-sandbox" in caught.value.message


@pytest.mark.slow
def test_a_run_is_evaluated_as_its_final_student(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / CONFIG).write_text("seed: 0\n")
    shutil.copytree(folder / "student", tmp_path / "run" / "final")
    result = evaluate(requested(folder, name=str(tmp_path / "run")), SilentProgress())
    assert result.cross_entropy == evaluate(requested(folder), SilentProgress()).cross_entropy
    assert result.settings.student == str(tmp_path / "run")


def test_without_targets_only_metrics_on_labels_are_reported(folder: Path) -> None:
    report = evaluate(requested(folder, cache="bare"), SilentProgress())
    assert report.kl_teacher is report.kl_teacher_estimate is report.top1_agreement is None
    assert report.cross_entropy == pytest.approx(evaluate(requested(folder), SilentProgress()).cross_entropy, rel=1e-6)
    assert len(report.notes) == 1 and "no targets" in report.notes[0]


@pytest.mark.slow
def test_a_lower_bound_is_reported_as_one(folder: Path) -> None:
    run(settings_for(folder, out="topk", targets={"kind": "topk", "top_k": 4}))
    report = evaluate(requested(folder, cache="topk"), SilentProgress())
    assert report.kl_teacher_estimate == "lower_bound"
    assert report.notes[0].startswith("KL to the teacher is a lower bound")


@pytest.mark.slow
def test_an_unfinished_cache_needs_allow_partial(folder: Path, tmp_path: Path) -> None:
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
def test_a_missing_split_is_refused_with_the_existing_ones(folder: Path) -> None:
    run(settings_for(folder, out="whole", data={"val_fraction": 0.0}))
    with pytest.raises(ConfigError, match="has no split 'validation'") as caught:
        evaluate(requested(folder, cache="whole"), SilentProgress())
    assert caught.value.hint == "its splits are train"


def test_a_student_with_another_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    other = small_tokenizer(tiny_llama(tmp_path / "other", vocabulary=400), vocabulary=400)
    with pytest.raises(Incompatible, match="tokenizer of student"):
        evaluate(requested(folder, name=str(other)), SilentProgress())


def test_a_randomly_initialized_student_is_refused(folder: Path) -> None:
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
def test_remote_code_of_a_student_runs_only_when_trusted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = with_own_code(folder / "student", tmp_path / "own")
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    plain = evaluate(requested(folder), SilentProgress()).cross_entropy
    assert evaluate(requested(folder, name=str(own)), SilentProgress()).cross_entropy == plain
    trusted = evaluate(requested(folder, name=str(own), trust_remote_code=True), SilentProgress()).cross_entropy
    assert abs(trusted - plain) > 1e-3


def test_a_revision_is_for_hub_models_and_not_for_adapters(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no revision v1"):
        evaluate(requested(folder, revision="v1"), SilentProgress())
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base", "revision": "abc"}')
    with pytest.raises(ConfigError, match="is an adapter"):
        evaluate(requested(folder, name=str(tmp_path), revision="v1"), SilentProgress())


@pytest.mark.slow
def test_an_adapter_is_evaluated_with_its_base(folder: Path, tmp_path: Path) -> None:
    train_state = student(folder / "student", TokenIds(count=512, longest=96), lora=True)
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in train_state.trainable().values():
            parameter.normal_(std=0.3, generator=drawn)
    save_student(train_state, tmp_path / "run" / "final", {}, "")
    (tmp_path / "run" / CONFIG).write_text("seed: 0\n")
    cache = open_cache(folder / "cache", "validation")
    expected = Evaluator(cache, None, batch_size=8).measure(train_state, PRECISIONS["fp32"])
    result = evaluate(requested(folder, name=str(tmp_path / "run")), SilentProgress())
    assert result.cross_entropy == pytest.approx(expected.cross_entropy, rel=1e-5)
    assert result.cross_entropy != pytest.approx(evaluate(requested(folder), SilentProgress()).cross_entropy, rel=1e-3)


@pytest.mark.slow
def test_task_metrics_are_in_the_report(folder: Path, tmp_path: Path) -> None:
    path, _ = local_task(tmp_path / "task", "mine")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own
        report = evaluate(requested(folder, tasks=(str(path),)), SilentProgress())
    assert 0 <= report.tasks["mine"]["acc"] <= 1
