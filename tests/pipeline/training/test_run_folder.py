"""The folder of a run: whose it is, what makes another run of it, and what is never cleared."""

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


def test_a_new_or_empty_folder_is_begun_and_found_again(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "a"
    claim(out, record())
    before = (out / RECORD).read_bytes()
    claim(out, record())
    assert (out / RECORD).read_bytes() == before
    assert [path.name for path in out.iterdir() if path.name != "tmp"] == [RECORD]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"schedule": {"kind": "linear"}}, "schedule.kind: cosine there, linear here"),
        ({"optimizer": {"lr": 1e-3}}, "optimizer.lr: nothing there, 0.001 here"),
        ({"run": {"phases": [{"until": 1.0}]}}, "run.phases: nothing there, [{"),
        ({"machine": {"precision": "bf16"}}, "machine.precision: auto there, bf16 here"),
        ({"evaluation": {"metric": "kl_teacher"}}, "evaluation.metric: nothing there, kl_teacher here"),
        ({"cache_id": "a2"}, "cache_id: a1 there, a2 here"),
        ({"student": "b3"}, "student: b2 there, b3 here"),
        ({"seed": 1}, "seed: 0 there, 1 here"),
    ],
)
def test_a_folder_of_another_run_is_refused_with_what_differs(tmp_path: Path, other: Any, said: str) -> None:
    claim(tmp_path / "run", record())
    with pytest.raises(ConfigError, match="holds another run: ") as caught:
        claim(tmp_path / "run", record(**other))
    assert said in caught.value.message
    told = str(caught.value.hint)
    assert ("--resume-from" if said.startswith(("optimizer.lr", "machine.precision")) else "--overwrite") in told
    assert caught.value.exit_code == 2


def test_a_file_in_the_place_of_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(ConfigError, match="run is a file, and a run is a folder"):
        check(tmp_path / "run", record(), overwrite=True)
    assert (tmp_path / "run").read_text() == "mine"


def test_many_differences_are_counted(tmp_path: Path) -> None:
    claim(tmp_path, record())
    losses = {"mode": "logit", "alpha": 0.2, "logit": "jsd", "skew": 0.2, "beta": 0.1, "temperature": 2.0}
    with pytest.raises(ConfigError, match=r"\(and 1 more\)"):
        claim(tmp_path, record(losses=losses))


def test_where_things_lie_and_how_a_machine_works_makes_no_other_run() -> None:
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
    assert differences(record(), record(run={"batch_size": 4})) == ["run.batch_size: 8 there, 4 here"]


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
def test_the_identity_is_another_where_something_differs(other: dict[str, Any]) -> None:
    same = differences(record(), record(**other)) == []
    assert (identity(record()) == identity(record(**other))) is same


def test_a_steered_run_knows_what_it_was(tmp_path: Path) -> None:
    claim(tmp_path, record())
    for lr in (1e-3, 1e-4):
        claim(tmp_path, record(optimizer={"lr": lr}), steered=True)
    now = stored(tmp_path, record())
    assert now.settings.optimizer.lr == 1e-4
    assert all(is_of(one, now) for one in (record(), record(optimizer={"lr": 1e-3}), now))
    assert not is_of(record(optimizer={"lr": 1e-2}), now)
    # Called again it is this run.
    claim(tmp_path, record(optimizer={"lr": 1e-4}))
    assert stored(tmp_path, record()) == now
    assert stored(tmp_path / "new", record(seed=5)) == record(seed=5)


def test_looking_at_a_folder_changes_nothing(tmp_path: Path) -> None:
    assert not check(tmp_path / "run", record())
    assert not (tmp_path / "run").exists()
    claim(tmp_path / "run", record())
    assert check(tmp_path / "run", record())
    assert check(tmp_path / "run", record(seed=1), overwrite=True)
    with pytest.raises(ConfigError, match="holds another run: seed: 0 there, 1 here"):
        check(tmp_path / "run", record(seed=1))
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is not empty, and no run of kdpipe"):
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
        with pytest.raises(ConfigError, match="is not empty, and no run of kdpipe"):
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


def test_a_record_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text("{")
    with pytest.raises(ConfigError, match="is of a run that cannot be told"):
        claim(tmp_path, record())
    claim(tmp_path, record(), overwrite=True)
