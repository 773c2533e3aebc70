"""Checkpoints: bit-exact, atomic and verified; which one a run resumes from, and which ones are kept."""

import dataclasses
import errno
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

from kdpipe.pipeline.students.parameter_roles import parameter_roles
from kdpipe.pipeline.training import state_tensors
from kdpipe.pipeline.training.checkpoints import (
    FILES,
    RECORD,
    CheckpointContents,
    choose,
    latest,
    listed,
    load,
    load_state,
    of_step,
    problem,
    save,
    to_resume,
)
from kdpipe.pipeline.training.optimizer_defaults import fill_defaults
from kdpipe.pipeline.training.optimizers import Trainable, make_optimizer, moments, restore_moments, set_learning_rate
from kdpipe.pipeline.training.run_folder import identity
from kdpipe.schemas.checkpoint import Best, CheckpointRecord, GuardState, LoopState, RunRecord
from kdpipe.schemas.errors import ConfigError, KdpipeError, WriteError
from kdpipe.schemas.manifest import FileRecord
from kdpipe.schemas.records import read_record
from kdpipe.schemas.strict_json import sha256_hex
from kdpipe.schemas.train_settings import OptimizerSettings, TrainSettings
from support.faults import Fault, count_calls, fault_at, killed, refused
from support.tiny import unsynced

MINE = RunRecord(settings=TrainSettings(), cache_id="a1", student="b2")


@pytest.fixture(autouse=True)
def _without_waiting_for_the_disk() -> Iterator[None]:
    with unsynced():
        yield


def contents(step: int, best: int | None = None, seed: int = 0) -> CheckpointContents:
    generator = torch.Generator().manual_seed(1000 * seed + step)
    weight = torch.randn(3, 4, generator=generator)
    return CheckpointContents(
        run=MINE,
        state=LoopState(
            step=step,
            place=8 * step,
            guard=GuardState(norms=(0.1, 1 / 3)),
            best=None if best is None else Best(step=best, value=2.5),
        ),
        model={"weight": weight, "tied": weight, "half": weight.half(), "turned": weight.T, "none": torch.empty(0)},
        optimizer={"student.weight:exp_avg": weight * 2, "student.weight:step": torch.tensor(float(step))},
        random={"cpu": torch.get_rng_state()},
    )


def names(run: Path) -> list[str]:
    return [path.name for path in listed(run)]


def silent(_text: str) -> None:
    raise AssertionError("no message was expected")


def same(one: CheckpointContents, other: CheckpointContents) -> bool:
    groups = [(one.model, other.model), (one.optimizer, other.optimizer), (one.random, other.random)]
    return (one.run, one.state) == (other.run, other.state) and all(
        first.keys() == second.keys()
        and all(torch.equal(first[name], second[name]) and first[name].dtype == second[name].dtype for name in first)
        for first, second in groups
    )


def test_a_checkpoint_is_read_back_to_the_bit(tmp_path: Path) -> None:
    written = contents(12)
    path = save(tmp_path, written, keep=2)
    assert path == tmp_path / "checkpoints" / "step-000012"
    assert {file.name for file in path.iterdir()} == {*FILES, RECORD}
    assert latest(tmp_path, MINE, silent) == path
    assert same(load(path), written)
    assert not (tmp_path / "tmp").exists()


def test_a_run_without_checkpoints_has_no_latest(tmp_path: Path) -> None:
    assert latest(tmp_path, MINE, silent) is None
    (tmp_path / "checkpoints" / "not one").mkdir(parents=True)
    assert latest(tmp_path, MINE, silent) is None


def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in range(1, 8):
        save(tmp_path, contents(step, best=3 if step >= 3 else step), keep=2)
    assert names(tmp_path) == ["step-000003", "step-000006", "step-000007"]


def test_the_rollback_snapshot_is_kept_when_interruptions_save_newer_checkpoints(tmp_path: Path) -> None:
    for step, snapshot in ((2, 2), (3, 2), (4, 4), (5, 4), (6, 4)):
        written = contents(step)
        save(
            tmp_path,
            dataclasses.replace(written, state=written.state.model_copy(update={"snapshot": snapshot})),
            keep=1,
        )
    assert names(tmp_path) == ["step-000004", "step-000006"]


def test_a_step_saved_again_overwrites_nothing_and_counts_as_newer(tmp_path: Path) -> None:
    save(tmp_path, contents(5), keep=2)
    again = save(tmp_path, contents(5, seed=1), keep=2)
    assert names(tmp_path) == ["step-000005", "step-000005.2"]
    assert latest(tmp_path, MINE, silent) == again
    assert same(load(again), contents(5, seed=1))
    save(tmp_path, contents(5, seed=2), keep=1)
    assert names(tmp_path) == ["step-000005.3"]


class Small(nn.Module):
    """A layer, a norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)

    def train_steps(self, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            set_learning_rate(optimizer, 1 / (step + 1))
            optimizer.zero_grad()
            output = nn.functional.dropout(self.norm(self.up(torch.full((3, 4), float(step)))))
            output.square().sum().backward()  # type: ignore[no-untyped-call]  # torch
            optimizer.step()


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_training_resumes_from_disk_to_the_bit(tmp_path: Path, kind: str) -> None:
    def begun() -> tuple[Small, torch.optim.Optimizer]:
        model = Small()
        trainable = Trainable(student=dict(model.named_parameters()), roles=parameter_roles(model))
        torch.manual_seed(1)
        given = OptimizerSettings.model_validate({"kind": kind, "lr": 0.1})
        return model, make_optimizer(fill_defaults(given, "fresh", 1_000_000), trainable)

    whole, optimizer = begun()
    whole.train_steps(optimizer, range(8))
    first, optimizer = begun()
    first.train_steps(optimizer, range(5))
    written = CheckpointContents(
        run=MINE,
        state=LoopState(step=5, place=40),
        model=state_tensors.model_tensors(first),
        optimizer=moments(optimizer),
        random=state_tensors.random_tensors(torch.device("cpu")),
    )
    found = load(save(tmp_path, written, keep=1))
    second, optimizer = begun()
    state_tensors.restore_model(second, found.model)
    restore_moments(optimizer, found.optimizer)
    state_tensors.restore_random(found.random, torch.device("cpu"))
    second.train_steps(optimizer, range(5, 8))
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in second.state_dict().items())
    assert not torch.equal(first.up.weight, whole.up.weight)


def test_the_newest_of_a_step_is_found_by_its_number(tmp_path: Path) -> None:
    assert of_step(tmp_path, 5, MINE) is None
    for step, seed in ((5, 0), (5, 1), (6, 0)):
        save(tmp_path, contents(step, seed=seed), keep=9)
    path = of_step(tmp_path, 5, MINE)
    assert path is not None
    assert path.name == "step-000005.2"
    assert load_state(path) == contents(5, seed=1).state
    assert of_step(tmp_path, 7, MINE) is None
    damage_of(path, "model.safetensors", "short")
    assert of_step(tmp_path, 5, MINE) == tmp_path / "checkpoints" / "step-000005"


def damage_of(path: Path, file: str, kind: str) -> None:
    target = path / file
    data = target.read_bytes()
    if kind == "gone":
        target.unlink()
    elif kind == "short":
        target.write_bytes(data[:-1])
    elif kind == "long":
        target.write_bytes(data + b"\0")
    elif kind == "link":
        target.rename(path / "elsewhere")
        target.symlink_to(path / "elsewhere")
    else:
        target.write_bytes(bytes(len(data)))


@pytest.mark.parametrize("file", sorted({*FILES, RECORD}))
@pytest.mark.parametrize("kind", ["gone", "short", "long", "link", "zeros"])
def test_a_damaged_newest_checkpoint_is_skipped_with_a_warning(tmp_path: Path, file: str, kind: str) -> None:
    before, newest = (save(tmp_path, contents(step), keep=2) for step in (10, 20))
    damage_of(newest, file, kind)
    warnings: list[str] = []
    assert latest(tmp_path, MINE, warnings.append) == before
    (line,) = warnings
    assert "checkpoints/step-000020 is damaged: " in line
    assert file in line


@pytest.mark.slow
def test_any_flipped_bit_is_found(tmp_path: Path) -> None:
    path = save(tmp_path, contents(20), keep=1)
    rng = random.Random(0)
    for file in sorted({*FILES, RECORD}):
        data = (path / file).read_bytes()
        few = rng.sample(range(len(data)), min(25, len(data)))
        for place in range(len(data)) if file == RECORD else few:
            flipped = bytearray(data)
            flipped[place] ^= 1 << rng.randrange(8)
            (path / file).write_bytes(flipped)
            assert problem(path) is not None, (file, place)
        (path / file).write_bytes(data)
    assert problem(path) is None


def test_saving_removes_damaged_checkpoints_of_later_steps(tmp_path: Path) -> None:
    for step in (10, 20):
        save(tmp_path, contents(step), keep=2)
    damage_of(tmp_path / "checkpoints" / "step-000020", "state.json", "short")
    save(tmp_path, contents(15), keep=1)
    assert names(tmp_path) == ["step-000015"]
    save(tmp_path, contents(20), keep=1)
    assert latest(tmp_path, MINE, silent) == tmp_path / "checkpoints" / "step-000020"


def test_a_step_can_be_saved_beside_its_damaged_checkpoint(tmp_path: Path) -> None:
    broken = save(tmp_path, contents(20), keep=2)
    damage_of(broken, RECORD, "gone")
    again = save(tmp_path, contents(20), keep=2)
    assert latest(tmp_path, MINE, silent) == again


@pytest.mark.parametrize("name", ["step-000020", "checkpoints/step-000020", "20", "{run}/checkpoints/step-000020"])
def test_a_checkpoint_is_chosen_by_name_step_or_path_and_later_ones_are_removed(tmp_path: Path, name: str) -> None:
    for step in (10, 20, 30, 40):
        save(tmp_path, contents(step), keep=9)
    lines: list[str] = []
    path = choose(tmp_path, name.format(run=tmp_path), MINE, lines.append)
    [line] = lines
    assert all(step in line for step in ("step-000020", "step-000030", "step-000040"))
    assert load(path).state.step == 20
    assert names(tmp_path) == ["step-000010", "step-000020"]


def test_a_missing_or_damaged_checkpoint_is_refused_with_the_available_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no checkpoint 7") as raised:
        choose(tmp_path, "7", MINE, silent)
    assert "none" in str(raised.value.hint)
    for step in (10, 20):
        save(tmp_path, contents(step), keep=9)
    with pytest.raises(ConfigError, match="has no checkpoint step-000030") as raised:
        choose(tmp_path, "step-000030", MINE, silent)
    assert "step-000010, step-000020" in str(raised.value.hint)
    damage_of(tmp_path / "checkpoints" / "step-000010", "model.safetensors", "zeros")
    with pytest.raises(ConfigError, match=r"checkpoints/step-000010.*damaged.*digest.*model\.safetensors") as raised:
        choose(tmp_path, "10", MINE, silent)
    assert "step-000020" in str(raised.value.hint)
    assert names(tmp_path) == ["step-000010", "step-000020"]


def of_run(step: int, **settings: Any) -> CheckpointContents:
    run = RunRecord(settings=TrainSettings.model_validate(settings, strict=False), cache_id="a1", student="b2")
    return dataclasses.replace(contents(step), run=run)


def test_a_checkpoint_of_another_run_is_skipped_with_a_warning(tmp_path: Path) -> None:
    before = save(tmp_path, contents(10), keep=9)
    save(tmp_path, of_run(20, seed=1, losses={"alpha": 0.5}), keep=9)
    warnings: list[str] = []
    assert latest(tmp_path, MINE, warnings.append) == before
    (line,) = warnings
    assert all(part in line for part in ("step-000020", "losses.alpha: 0.5 -> 0.1", "seed: 1 -> 0"))
    assert of_step(tmp_path, 20, MINE) is None
    with pytest.raises(ConfigError, match=r"checkpoints/step-000020.*run.*seed: 1 -> 0") as raised:
        choose(tmp_path, "20", MINE, silent)
    assert raised.value.exit_code == 2
    assert names(tmp_path) == ["step-000010", "step-000020"]


def test_a_run_with_checkpoints_of_other_runs_only_is_refused(tmp_path: Path) -> None:
    save(tmp_path, of_run(10, seed=2), keep=9)
    damage_of(save(tmp_path, of_run(20, seed=1), keep=9), "model.safetensors", "zeros")
    warnings: list[str] = []
    with pytest.raises(ConfigError, match=r"step-000020.*damaged.*step-000010.*run.*seed.*2 -> 0"):
        latest(tmp_path, MINE, warnings.append)
    assert len(warnings) == 2


def rewritten(path: Path, file: str, old: str, new: str) -> None:
    """Change a file of a checkpoint, with the digest in its record."""
    text = (path / file).read_text()
    assert text.count(old) == 1
    data = text.replace(old, new).encode()
    (path / file).write_bytes(data)
    if file != RECORD:
        record = read_record(CheckpointRecord, (path / RECORD).read_bytes(), RECORD)
        files = record.files | {file: FileRecord(bytes=len(data), sha256=sha256_hex(data))}
        (path / RECORD).write_bytes(record.model_copy(update={"files": files}).to_json())


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(tmp_path: Path) -> None:
    for step, file in ((10, "state.json"), (20, "model.safetensors")):
        damage_of(save(tmp_path, contents(step), keep=9), file, "zeros")
    for refused_by in (latest, to_resume):
        with pytest.raises(ConfigError, match=r"step-000020.*damaged.*model.*step-000010.*damaged.*state") as raised:
            refused_by(tmp_path, MINE, lambda _text: None)
        assert raised.value.exit_code == 2 and "--overwrite" in str(raised.value.hint)
    assert names(tmp_path) == ["step-000010", "step-000020"]


@pytest.mark.parametrize(
    ("file", "old", "new", "named"),
    [
        (RECORD, '"version":2', '"version":1', "version 1, expected 2"),
        ("state.json", '"step":20', '"more":1,"step":20', "state.json"),
        ("run.json", '"seed":0,', "", "run.json"),
    ],
)
def test_a_checkpoint_of_another_version_is_not_called_damaged(
    tmp_path: Path, file: str, old: str, new: str, named: str
) -> None:
    path = save(tmp_path, contents(20), keep=9)
    rewritten(path, file, old, new)
    reason = problem(path)
    assert reason is not None and "another version of kdpipe" in reason and named in reason and "damaged" not in reason
    for refused_by in (
        lambda: latest(tmp_path, MINE, lambda _text: None),
        lambda: choose(tmp_path, "20", MINE, silent),
    ):
        with pytest.raises(ConfigError, match="another version of kdpipe"):
            refused_by()


@pytest.mark.parametrize("trace", ["metrics.jsonl", "final"])
def test_a_run_that_has_lost_its_checkpoints_is_refused(tmp_path: Path, trace: str) -> None:
    # Killed before it saved step 0: it starts.
    (tmp_path / "metrics.jsonl").touch()
    assert to_resume(tmp_path, MINE, silent) is None
    if trace == "final":
        (tmp_path / trace).mkdir()
    else:
        (tmp_path / trace).write_text('{"step":1}\n')
    with pytest.raises(ConfigError, match=f"{trace}.*no checkpoint") as raised:
        to_resume(tmp_path, MINE, silent)
    assert raised.value.exit_code == 2 and "--overwrite" in str(raised.value.hint)
    path = save(tmp_path, contents(20), keep=9)
    assert to_resume(tmp_path, MINE, silent) == path


def test_settings_that_may_differ_and_earlier_identities_are_the_same_run(tmp_path: Path) -> None:
    moved = {"run": {"batch_size": 4, "accumulate": 2}, "machine": {"threads": 3}, "report_to": ["wandb"], "out": "x"}
    assert latest(tmp_path, MINE, silent) is None
    path = save(tmp_path, of_run(10, **moved), keep=9)
    assert latest(tmp_path, MINE, silent) == path
    slower = of_run(10, optimizer={"lr": 1e-3}).run
    with pytest.raises(ConfigError, match=r"optimizer.lr: none -> 0.001"):
        latest(tmp_path, slower, lambda _text: None)
    assert latest(tmp_path, slower.model_copy(update={"earlier": (identity(MINE),)}), silent) == path


def in_child(work: Callable[[], object]) -> int:
    """Do some work in a child that may be killed; its exit status."""
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            work()
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def begun(run: Path) -> Path:
    shutil.rmtree(run, ignore_errors=True)
    for step in (10, 20):
        save(run, contents(step), keep=1)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after", "half"])
def test_a_save_killed_at_any_call_leaves_the_old_checkpoint_or_the_new_one(
    tmp_path: Path, when: Literal["before", "after", "half"]
) -> None:
    run, new = tmp_path / "run", contents(30)
    n_calls = count_calls(lambda: save(begun(tmp_path / "counted"), new, keep=1)) - count_calls(
        lambda: begun(tmp_path / "counted")
    )
    assert n_calls > 20
    found = set()
    for number in range(1, n_calls + 1):
        begun(run)
        fault: Fault = killed(lambda _path: None, when)

        def dies(fault: Fault = fault, number: int = number) -> None:
            with fault_at(number, fault):
                save(run, new, keep=1)

        assert in_child(dies) == 9
        path = latest(run, MINE, silent)
        assert path is not None
        found.add(load(path).state.step)
        assert same(load(path), contents(load(path).state.step))
        # The next save works and leaves no other file.
        save(run, contents(40), keep=1)
        assert names(run) == ["step-000040"]
    assert found == {20, 30}


@pytest.mark.slow
def test_a_failed_save_leaves_the_old_checkpoint_and_raises(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    n_refused = 0
    for number in range(1, 200):
        with fault_at(number, refused(errno.ENOSPC)) as calls:
            try:
                save(run, contents(30), keep=1)
            except KdpipeError as error:
                n_refused += 1
                assert isinstance(error, WriteError)
                assert "checkpoint" in error.message
        assert latest(run, MINE, silent) is not None
        if calls.n < number:
            break
        begun(run)
    assert n_refused > 15


def test_a_limit_on_file_sizes_is_named_for_tensors_too(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")

    def writes() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        try:
            save(tmp_path, contents(1), keep=1)
        except WriteError as error:
            os._exit(3 if "safetensors" in error.message and "ulimit -f" in str(error.hint) else 4)

    assert os.waitstatus_to_exitcode(in_child(writes)) == 3
    assert listed(tmp_path) == []
