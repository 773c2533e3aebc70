"""An export and a run in one folder: neither starts while the other is under way."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from kdpipe.cache.durable.lock import LOCK
from kdpipe.cli import main
from kdpipe.pipeline import export as story
from kdpipe.pipeline.export import export
from kdpipe.pipeline.students import export_folder
from kdpipe.pipeline.training.run_folder import RECORD, run_around
from kdpipe.schemas.errors import LockHeld
from kdpipe.schemas.train_settings import TrainSettings
from support.children import Child, mount_memory, mounted, remount
from support.gates import Gate
from support.stage_two import StepMeeting, contents, run, settings_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads what /proc knows of a process")

SHORT = {"run": {"max_steps": 2, "batch_size": 2, "accumulate": 1}, "saving": {"every": 1}, "evaluation": {"limit": 1}}


@pytest.fixture(autouse=True)
def _same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_folder, "check_reload", lambda *_, **__: 0.0)


@pytest.fixture(scope="module")
def finished(folder: Path) -> TrainSettings:
    settings = settings_for(folder, "finished", **SHORT)
    run(settings)
    return settings


def out_of(settings: TrainSettings) -> Path:
    return Path(str(settings.out))


@contextmanager
def export_under_way(source: Path, out: Path | None) -> Iterator[int]:
    """Another process that exports, stopped right before it reads its folder again."""
    gate = Gate(1)

    def wait(*_: Any, **__: Any) -> float:
        gate.pass_through()
        return 0.0

    def work() -> str:
        torch.set_num_threads(1)
        export_folder.check_reload = wait
        return export(source, out, None).folder

    child = Child(work)
    gate.wait()
    try:
        yield child.pid
    finally:
        gate.open()
        ended = child.wait()
        gate.close()
    assert ended.code == 0, ended.output
    assert (Path(ended.output) / "model.safetensors").stat().st_size > 0


def refused(action: Any, folder: Path, pid: int) -> None:
    with pytest.raises(LockHeld, match=f"{folder} is in use by process {pid} on ") as caught:
        action()
    assert caught.value.exit_code == 2


def test_an_export_of_a_run_that_trains_is_refused(finished: TrainSettings, tmp_path: Path) -> None:
    held, meet = out_of(finished), Gate(1)
    child = Child(lambda: str(run(finished, StepMeeting(meet.pass_through), overwrite=True)))
    meet.wait()
    try:
        before = contents(held)
        for source in (held, held / "checkpoints"):
            refused(lambda source=source: export(source, tmp_path / "out", None), held, child.pid)
        assert main.run(["export", str(held), "--to", "hf"]) == 2
        other = tmp_path / "model"
        other.mkdir()
        refused(lambda: export(other, held / "inside", None), held, child.pid)
        assert contents(held) == before
    finally:
        meet.open()
    assert child.wait().code == 0
    meet.close()
    assert export(held, tmp_path / "out", None).folder == str(tmp_path / "out")
    assert not (held / LOCK).exists()


@pytest.mark.parametrize("inside", [True, False])
def test_a_run_is_not_overwritten_during_its_export(finished: TrainSettings, tmp_path: Path, inside: bool) -> None:
    held = out_of(finished)
    out = held / "export" if inside else tmp_path / "out"
    with export_under_way(held, None if inside else out) as pid:
        before = contents(held)
        for options in ({"overwrite": True}, {}):
            refused(lambda options=options: run(finished, **options), held, pid)
        assert contents(held) == before
    run(finished, overwrite=True)
    assert out.exists() is not inside and not (held / LOCK).exists()


def test_a_run_is_not_overwritten_while_another_model_is_exported_into_it(
    finished: TrainSettings, folder: Path
) -> None:
    settings = settings_for(folder, "other-run", **SHORT)
    run(settings)
    with export_under_way(out_of(settings) / "final", out_of(finished) / "sub" / "export") as pid:
        for each in (finished, settings):
            refused(lambda each=each: run(each, overwrite=True), out_of(each), pid)
    run(finished, overwrite=True)


def test_two_exports_of_one_run_wait_for_each_other(finished: TrainSettings, tmp_path: Path) -> None:
    with export_under_way(out_of(finished), tmp_path / "first") as pid:
        refused(lambda: export(out_of(finished), tmp_path / "second", None), out_of(finished), pid)
    export(out_of(finished), tmp_path / "second", None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]


def test_a_read_only_run_is_exported_unless_its_lock_is_held(finished: TrainSettings, tmp_path: Path) -> None:
    source = {name: data for name, data in contents(out_of(finished)).items() if name.startswith(("final/", RECORD))}

    def work() -> str:
        torch.set_num_threads(1)
        disk = tmp_path / "disk"
        mount_memory(disk, 1 << 25)
        for name, data in source.items():
            path = disk / "run" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        with story.locked(disk / "run", lambda _: None):
            alive = (disk / "run" / LOCK).read_text()
        ended = alive.replace(f'"started":"{json.loads(alive)["started"]}"', '"started":"1"')
        notes: list[str] = []
        for name, line in {"free": None, "held": alive, "ended": ended, "damaged": "{"}.items():
            remount(disk, 1 << 25)
            if line is not None:
                (disk / "run" / LOCK).write_text(line)
            remount(disk, 1 << 25, read_only=True)
            if name == "held":
                refused(lambda: export(disk / "run", tmp_path / "held", None), disk / "run", os.getpid())
            elif name == "damaged":
                with pytest.raises(LockHeld, match="process"):
                    export(disk / "run", tmp_path / "damaged", None)
            else:
                notes += export(disk / "run", tmp_path / name, None).notes
        return "\n".join(notes)

    child = mounted(work)
    assert child.code == 0, child.output
    assert child.output.count(f"{tmp_path / 'disk' / 'run'} is read-only and was not locked") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "ended", "free"]


def test_nothing_is_exported_into_a_run_without_a_record(finished: TrainSettings, tmp_path: Path) -> None:
    gate = Gate(1)

    def begin() -> None:
        with story.locked(tmp_path / "new", lambda _: None):
            gate.pass_through()

    child = Child(begin)
    gate.wait()
    try:
        inside = tmp_path / "new" / "export"
        refused(lambda: export(out_of(finished), inside, None), tmp_path / "new", child.pid)
    finally:
        gate.open()
    assert child.wait().code == 0
    gate.close()
    assert list(tmp_path.iterdir()) == []


def test_the_run_that_contains_a_path_is_found_through_links(tmp_path: Path) -> None:
    (tmp_path / "run" / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "run" / "sub")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert run_around(tmp_path / "link" / "export") is None
    (tmp_path / "run" / RECORD).write_text("{}")
    for inside in (tmp_path / "run", tmp_path / "run" / "new" / "export", tmp_path / "link" / "export"):
        assert run_around(inside) == tmp_path / "run"
    for outside in (tmp_path, tmp_path / "other", tmp_path / "loop" / "export", tmp_path / ("x" * 300)):
        assert run_around(outside) is None
