"""One run at a time in a folder: starts at the same moment, and starts beside a run that is under way."""

import errno
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdpipe.cache.durable import lock
from kdpipe.cache.durable.lock import LOCK
from kdpipe.schemas.errors import ConfigError, Interrupted, LockHeld
from kdpipe.schemas.train_settings import TrainSettings
from support.children import Child, in_child
from support.gates import Gate
from support.recording import RecordingProgress
from support.stage_two import StepMeeting, Stopping, contents, losses, run, settings_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads what /proc knows of a process")

SHORT = {"run": {"max_steps": 2, "batch_size": 2, "accumulate": 1}, "saving": {"every": 1}, "evaluation": {"limit": 1}}
IN_USE = "is in use by process"


def with_seed(settings: TrainSettings, seed: int) -> TrainSettings:
    return settings.model_copy(update={"seed": seed})


def start(settings: TrainSettings, begin: Callable[[], None], meet: Callable[[], None], **options: Any) -> None:
    """Start with others, and be under way until all have been refused or are under way too."""
    begin()
    try:
        run(settings, StepMeeting(meet), **options)
    except LockHeld:
        meet()
        raise


def race(settings: list[TrainSettings], **options: Any) -> list[tuple[int, str]]:
    """How runs end that are started at the same moment: exit codes, and errors."""
    begin, meet = Gate(len(settings)), Gate(len(settings))
    gates = begin.pass_through, meet.pass_through
    children = [Child(lambda each=each: start(each, *gates, **options)) for each in settings]
    for gate in (begin, meet):
        gate.wait()
        gate.open()
    ended = [child.wait() for child in children]
    for gate in (begin, meet):
        gate.close()
    return [(child.code, child.output) for child in ended]


@pytest.mark.slow
@pytest.mark.parametrize("n_rounds", [6, pytest.param(50, marks=pytest.mark.soak)])
def test_of_two_simultaneous_runs_one_trains_and_the_other_is_refused(
    folder: Path, tmp_path: Path, n_rounds: int
) -> None:
    for number in range(n_rounds):
        out = tmp_path / str(number)
        settings = settings_for(folder, **SHORT).model_copy(update={"out": str(out)})
        ended = race([with_seed(settings, seed) for seed in (0, number % 2)])
        assert sorted(code for code, _ in ended) == [0, 2], ended
        assert all(IN_USE in text for code, text in ended if code == 2)
        requested, config = (
            json.loads((out / "run.json").read_text()),
            yaml.safe_load((out / "config.yaml").read_text()),
        )
        seed = next(each for each, (code, _) in zip((0, number % 2), ended, strict=True) if not code)
        assert requested["settings"]["seed"] == config.get("seed", 0) == seed
        steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert steps[:2] == [1, 2] and steps.count(1) == 1
        assert (out / "final" / "model.safetensors").exists() and not (out / LOCK).exists()


@pytest.mark.slow
def test_a_refused_start_changes_nothing_of_the_active_run(folder: Path) -> None:
    settings, meet = settings_for(folder, "held", **SHORT), Gate(1)
    child = Child(lambda: start(settings, lambda: None, meet.pass_through))
    meet.wait()
    try:
        check_nothing_is_touched(folder / "held", settings, child.pid)
    finally:
        meet.open()
    assert child.wait().code == 0
    meet.close()
    assert not (folder / "held" / LOCK).exists()
    assert run(settings).steps == 2


def check_nothing_is_touched(out: Path, settings: TrainSettings, pid: int) -> None:
    """Every way to start in a folder that another process trains in is refused, and leaves it as it is."""
    before, held = contents(out), os.stat(out / LOCK)
    options: list[tuple[int, dict[str, Any]]] = [
        (0, {}),
        (1, {}),
        (0, {"overwrite": True}),
        (1, {"overwrite": True}),
        (0, {"resume_from": "0"}),
        (0, {"dry_run": True}),
    ]
    for seed, chosen in options:
        with pytest.raises(LockHeld, match=f"{IN_USE} {pid} on ") as caught:
            run(with_seed(settings, seed), **chosen)
        assert caught.value.exit_code == 2
        assert contents(out) == before
        assert os.path.samestat(os.stat(out / LOCK), held)


@pytest.mark.slow
def test_of_two_runs_that_overwrite_one_folder_one_is_refused(folder: Path) -> None:
    settings = settings_for(folder, "overwritten", **SHORT)
    run(settings)
    ended = race([with_seed(settings, seed) for seed in (1, 2)], overwrite=True)
    assert sorted(code for code, _ in ended) == [0, 2], ended
    (seed,) = (seed for seed, (code, _) in zip((1, 2), ended, strict=True) if not code)
    assert json.loads((folder / "overwritten" / "run.json").read_text())["settings"]["seed"] == seed
    assert len([step for step, _ in losses(folder / "overwritten")]) == 2


def test_a_file_system_without_locks_is_reported_and_the_run_starts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock, "_lock", refuse)
    progress = RecordingProgress()
    assert run(settings_for(folder, "no locks", **SHORT), progress).steps == 2
    assert len([line for line in progress.messages if "has no locks" in line]) == 1
    assert not (folder / "no locks" / LOCK).exists()


def test_a_killed_run_leaves_a_lock_that_the_next_start_takes_over(folder: Path) -> None:
    settings = settings_for(folder, "killed lock", **SHORT)
    assert in_child(lambda: str(run(settings, Stopping(1, signal.SIGKILL)))).code == -signal.SIGKILL
    holder = json.loads((folder / "killed lock" / LOCK).read_text())["pid"]
    progress = RecordingProgress()
    assert run(settings, progress).steps == 2
    assert progress.messages.count(f"took over the lock of process {holder}, which has ended") == 1
    assert not (folder / "killed lock" / LOCK).exists()


def test_a_run_that_stops_or_fails_releases_its_lock(folder: Path, tmp_path: Path) -> None:
    settings = settings_for(folder, "stopped lock", **SHORT)
    with pytest.raises(Interrupted):
        run(settings, Stopping(1, signal.SIGTERM))
    assert not (folder / "stopped lock" / LOCK).exists()
    with pytest.raises(ConfigError, match="run with other settings"):
        run(with_seed(settings, 1))
    assert not (folder / "stopped lock" / LOCK).exists()
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is not empty"):
        run(settings.model_copy(update={"out": str(tmp_path)}))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
