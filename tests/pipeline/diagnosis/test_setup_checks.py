"""Checks of a cache, a teacher and a student that fit together, and of those that do not."""

import json
import shutil
from pathlib import Path

import pytest

from kdpipe.pipeline.diagnosis import setup_checks, trial_steps
from kdpipe.pipeline.diagnosis.setup_checks import check_setup
from kdpipe.pipeline.models import devices
from kdpipe.pipeline.training import thread_choice
from kdpipe.schemas.doctor_report import Check
from support.corpora import small_tokenizer
from support.models import tiny_llama
from support.recording import RecordingProgress
from support.stage_two import make_cache


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step on one thread is enough here."""
    monkeypatch.setattr(trial_steps, "N_STEPS", 1)
    for module in (devices, thread_choice):
        monkeypatch.setattr(module, "usable_cpus", lambda: 1)


def checks(
    folder: Path, cache: str | None = None, teacher: str | None = None, student: str | None = None
) -> list[Check]:
    """Checks of models and caches by their names in a folder; presets have none there."""
    paths = [name and (str(folder / name) if (folder / name).exists() else name) for name in (cache, teacher, student)]
    return list(check_setup(*paths, RecordingProgress()))


def level_of(found: list[Check], name: str) -> str:
    """The worst level of the checks of a name."""
    levels = [check.level for check in found if check.name == name]
    return max(levels, key=["ok", "warning", "problem"].index)


def test_a_teacher_its_cache_and_a_student_fit(folder: Path) -> None:
    found = checks(folder, "cache", "teacher", "student.json")
    assert not [check for check in found if check.level == "problem"]
    by_name = {check.name: check.what for check in found}
    assert {"cache", "teacher", "teacher memory", "student", "training memory", "training time"} <= set(by_name)
    assert "512 token ids" in by_name["cache"] and "llama" in by_name["student"]


def test_trial_steps_change_nothing_and_show_a_task(folder: Path) -> None:
    before = sorted(path for path in folder.rglob("*"))
    progress = RecordingProgress()
    list(check_setup(str(folder / "cache"), None, "tiny", progress))
    assert progress.tasks["trial steps"].total == 1 + trial_steps.N_STEPS
    assert not progress.open_tasks and not progress.messages
    assert sorted(path for path in folder.rglob("*")) == before


def test_a_missing_cache_is_a_problem_and_the_student_is_not_checked(folder: Path) -> None:
    (check,) = checks(folder, "no-cache", student="tiny")
    assert (check.name, check.level) == ("cache", "problem") and check.do


def test_temperatures_show_how_exact_they_are_and_the_mass_there(folder: Path) -> None:
    # A random teacher is unsure: its exact ids hold little at higher temperatures.
    one, two, four = [check for check in checks(folder, "cache") if check.name == "temperature"]
    assert one.level == "ok" and one.what.startswith("1: unbiased")
    for check, temperature in ((two, 2), (four, 4)):
        assert check.level == "warning" and check.what.startswith(f"{temperature}: coarse")
        assert f"--target-temperature {temperature}" in check.do


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ({"kind": "topk", "top_k": 8}, "lower bound"),
        ({"kind": "state"}, "every temperature"),
        ({"kind": "none", "temperatures": ()}, "--mode output"),
    ],
)
def test_other_targets(targets: dict[str, object], words: str, folder: Path, tmp_path: Path) -> None:
    for name in ("teacher", "corpus.jsonl"):
        (tmp_path / name).symlink_to(folder / name)
    hidden = {"layers": ()} if targets["kind"] == "none" else {}
    make_cache(tmp_path, targets=targets, hidden=hidden)
    found = checks(tmp_path, "cache", student="tiny")
    assert any(words in check.what for check in found)
    assert level_of(found, "student") == "ok" and level_of(found, "training time") == "ok"


def test_a_student_with_another_tokenizer_is_a_problem(folder: Path, tmp_path: Path) -> None:
    other = tiny_llama(tmp_path / "other", vocabulary=400)
    small_tokenizer(other, vocabulary=400)
    for found in (checks(folder, "cache", student=str(other)), checks(folder, teacher="teacher", student=str(other))):
        assert found[-1].name == "student" and found[-1].level == "problem"
        assert found[-1].do


def test_a_teacher_with_another_tokenizer_than_the_cache_s_is_a_problem(folder: Path, tmp_path: Path) -> None:
    other = tiny_llama(tmp_path / "other", vocabulary=400)
    small_tokenizer(other, vocabulary=400)
    found = checks(folder, "cache", teacher=str(other))
    assert level_of(found, "teacher") == "problem"


def test_a_teacher_that_does_not_load_is_a_problem(folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder / "teacher", tmp_path / "broken")
    (broken / "model.safetensors").unlink()
    (check,) = checks(folder, teacher=str(broken), student="tiny")
    assert (check.name, check.level) == ("teacher", "problem") and check.do


def test_a_student_that_is_too_small_for_the_vocabulary_is_a_problem(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "student.json").read_text()) | {"vocab_size": 100}
    (tmp_path / "small.json").write_text(json.dumps(config))
    found = checks(folder, "cache", student=str(tmp_path / "small.json"))
    assert level_of(found, "student") == "problem" and "training time" not in {check.name for check in found}


def test_a_student_without_a_cache_is_compared_with_the_teacher(folder: Path) -> None:
    found = checks(folder, teacher="teacher", student="teacher")
    assert {check.level for check in found} == {"ok"}
    assert found[-1].name == "training memory"


def test_a_student_beyond_the_memory_is_a_problem_and_is_not_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_steps, "free_memory", lambda _device: 100_000)
    monkeypatch.setattr(trial_steps, "build_train_state", lambda *_: pytest.fail("loaded"))
    found = checks(folder, "cache", student="student.json")
    assert (found[-1].name, found[-1].level) == ("training memory", "problem")


def test_running_out_of_memory_in_a_trial_step_is_a_problem(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(trial_steps, "forward_backward", fail)
    found = checks(folder, "cache", student="student.json")
    assert (found[-1].name, found[-1].level) == ("training memory", "problem") and "gradient_checkpointing" in found[
        -1
    ].do


def test_a_trial_step_that_nearly_fills_the_memory_is_a_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_steps, "process_bytes", lambda: 0)
    monkeypatch.setattr(trial_steps, "peak_process_bytes", lambda: 95 * 10**6)
    monkeypatch.setattr(trial_steps, "free_memory", lambda _device: 100 * 10**6)
    found = checks(folder, "cache", student="student.json")
    assert level_of(found, "training memory") == "warning"


def test_a_teacher_beyond_the_memory_is_a_problem(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup_checks.devices, "free_memory", lambda _device: 1_000_000)
    found = checks(folder, teacher="teacher")
    assert level_of(found, "teacher memory") == "problem"
