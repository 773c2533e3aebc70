"""The folder of a run: which run it has, what makes another run, and what is never cleared."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kdpipe.cache.durable.lock import LOCK, locked
from kdpipe.pipeline.training.run_folder import RECORD, check, claim, differences, identity, is_of, stored
from kdpipe.schemas.checkpoint import RunRecord
from kdpipe.schemas.errors import ConfigError, KdpipeError
from kdpipe.schemas.train_settings import TrainSettings
from support.faults import count_calls, fault_at, refused
from support.tiny import unsynced


def record(cache_id: str = "a1", student: str = "b2", **settings: Any) -> RunRecord:
    return RunRecord(settings=TrainSettings.model_validate(settings, strict=False), cache_id=cache_id, student=student)


def test_a_run_is_created_in_a_new_or_empty_folder_and_recognized(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "a"
    claim(out, record())
    before = (out / RECORD).read_bytes()
    claim(out, record())
    assert (out / RECORD).read_bytes() == before
    assert [path.name for path in out.iterdir() if path.name != "tmp"] == [RECORD]


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"schedule": {"kind": "linear"}}, "schedule.kind: cosine -> linear"),
        ({"optimizer": {"lr": 1e-3}}, "optimizer.lr: none -> 0.001"),
        ({"run": {"phases": [{"until": 1.0}]}}, "run.phases: none -> [{"),
        ({"machine": {"precision": "bf16"}}, "machine.precision: auto -> bf16"),
        ({"evaluation": {"metric": "kl_teacher"}}, "evaluation.metric: none -> kl_teacher"),
        ({"cache_id": "a2"}, "cache_id: a1 -> a2"),
        ({"student": "b3"}, "student: b2 -> b3"),
        ({"seed": 1}, "seed: 0 -> 1"),
    ],
)
def test_a_folder_of_another_run_is_refused_with_what_differs(tmp_path: Path, other: Any, difference: str) -> None:
    claim(tmp_path / "run", record())
    with pytest.raises(ConfigError, match="run with other settings") as raised:
        claim(tmp_path / "run", record(**other))
    assert difference in raised.value.message
    steers = difference.startswith(("optimizer.lr", "machine.precision"))
    assert ("--resume-from" if steers else "--overwrite") in str(raised.value.hint)
    assert raised.value.exit_code == 2


def test_a_file_instead_of_a_run_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(ConfigError, match="run is a file"):
        check(tmp_path / "run", record(), overwrite=True)
    assert (tmp_path / "run").read_text() == "mine"


def test_many_differences_are_counted(tmp_path: Path) -> None:
    claim(tmp_path, record())
    losses = {"mode": "logit", "alpha": 0.2, "logit": "jsd", "skew": 0.2, "beta": 0.1, "temperature": 2.0}
    with pytest.raises(ConfigError, match=r"\(and 1 more\)"):
        claim(tmp_path, record(losses=losses))


def test_locations_and_machine_settings_make_no_other_run() -> None:
    moved: dict[str, Any] = {
        "cache": {"path": "elsewhere"},
        "out": "there",
        "report_to": ["wandb"],
        "saving": {"every": 3, "keep": 9},
        "machine": {"device": "cpu", "threads": 3, "ahead": 9},
    }
    assert differences(record(), record(**moved)) == []


def test_the_same_steps_in_other_batches_make_no_other_run() -> None:
    split = record(run={"batch_size": 4, "accumulate": 2})
    less = split.settings.student.model_copy(update={"gradient_checkpointing": True})
    split = split.model_copy(update={"settings": split.settings.model_copy(update={"student": less})})
    assert differences(record(), split) == []
    assert differences(record(), record(run={"batch_size": 4})) == ["run.batch_size: 8 -> 4"]


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"seed": 1},
        {"cache_id": "a2"},
        {"student": "b3"},
        {"run": {"batch_size": 4, "accumulate": 2}},
        {"run": {"batch_size": 4}},
        {"losses": {"temperature": 2.0}},
        {"optimizer": {"lr": 1e-3}},
        {"machine": {"threads": 2, "device": "cpu", "portion": 1}},
        {"machine": {"precision": "bf16"}},
        {"cache": {"path": "elsewhere"}, "out": "there", "saving": {"keep": 9}},
    ],
    ids=str,
)
def test_identities_differ_exactly_with_differences(other: dict[str, Any]) -> None:
    same = differences(record(), record(**other)) == []
    assert (identity(record()) == identity(record(**other))) is same


def test_a_steered_run_records_its_earlier_identities(tmp_path: Path) -> None:
    claim(tmp_path, record())
    for lr in (1e-3, 1e-4):
        claim(tmp_path, record(optimizer={"lr": lr}), steered=True)
    now = stored(tmp_path, record())
    assert now.settings.optimizer.lr == 1e-4
    assert all(is_of(earlier, now) for earlier in (record(), record(optimizer={"lr": 1e-3}), now))
    assert not is_of(record(optimizer={"lr": 1e-2}), now)
    # Called again it is this run.
    claim(tmp_path, record(optimizer={"lr": 1e-4}))
    assert stored(tmp_path, record()) == now
    assert stored(tmp_path / "new", record(seed=5)) == record(seed=5)


def test_checking_a_folder_changes_nothing(tmp_path: Path) -> None:
    assert not check(tmp_path / "run", record())
    assert not (tmp_path / "run").exists()
    claim(tmp_path / "run", record())
    assert check(tmp_path / "run", record())
    assert check(tmp_path / "run", record(seed=1), overwrite=True)
    with pytest.raises(ConfigError, match="seed: 0 -> 1"):
        check(tmp_path / "run", record(seed=1))
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is not empty"):
        check(tmp_path, record(), overwrite=True)
    assert (tmp_path / "run" / RECORD).exists()


def test_overwriting_clears_a_run_and_nothing_else(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    claim(run, record())
    (run / "checkpoints" / "step-000001").mkdir(parents=True)
    (run / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "kept").write_text("kept")
    (run / "link").symlink_to(tmp_path)
    claim(run, record(seed=1), overwrite=True)
    assert [path.name for path in run.iterdir() if path.name != "tmp"] == [RECORD]
    assert (tmp_path / "kept").read_text() == "kept"
    claim(run, record(seed=1))
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    for overwrite in (True, False):
        with pytest.raises(ConfigError, match="is not empty"):
            claim(other, record(), overwrite=overwrite)
    assert (other / "thesis.tex").read_text() == "years of work"


def test_clearing_leaves_the_lock(tmp_path: Path) -> None:
    with locked(tmp_path / "run", lambda _: None):
        claim(tmp_path / "run", record())
        before = (tmp_path / "run" / LOCK).stat()
        claim(tmp_path / "run", record(seed=1), overwrite=True)
        assert (tmp_path / "run" / LOCK).stat() == before
    assert [path.name for path in (tmp_path / "run").iterdir() if path.name != "tmp"] == [RECORD]


@pytest.mark.slow
def test_a_clearing_that_fails_anywhere_can_be_repeated(tmp_path: Path) -> None:
    def begun(name: str) -> Path:
        claim(tmp_path / name, record())
        (tmp_path / name / "checkpoints").mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("{}\n")
        return tmp_path / name

    one = begun("counted")
    n_calls = count_calls(lambda: claim(one, record(seed=1), overwrite=True))
    assert n_calls > 5
    for number in range(1, n_calls + 1):
        run = begun(f"run-{number}")
        with suppress(OSError, KdpipeError), unsynced(), fault_at(number, refused(28)):
            claim(run, record(seed=1), overwrite=True)
        claim(run, record(seed=1), overwrite=True)
        claim(run, record(seed=1))


def test_an_unreadable_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text("{")
    with pytest.raises(ConfigError, match="unreadable record"):
        claim(tmp_path, record())
    claim(tmp_path, record(), overwrite=True)
