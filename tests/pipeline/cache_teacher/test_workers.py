"""Several workers of one machine: equal shares, merged messages, and every death reported."""

import os
import sys
from functools import partial
from pathlib import Path

import pytest

from kdpipe.pipeline.capture.capture_run import _combined_report, work
from kdpipe.pipeline.capture.part_queue import WorkerShard
from kdpipe.pipeline.capture.workers import run_workers, worker_settings
from kdpipe.pipeline.teachers import transformers_backend
from kdpipe.schemas.errors import ConfigError, KdpipeError
from support.children import in_child
from support.stage_one import RecordingProgress, die, fail_second, interrupt_all, make_inputs, run, settings_for, talk

PARTS = {"part_rows": 512}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workers")
    make_inputs(folder)
    return folder


@pytest.mark.slow
def test_two_workers_make_the_cache_of_one(folder: Path) -> None:
    alone = run(settings_for(folder, "alone", sequences=PARTS))
    settings, progress = settings_for(folder, "two", sequences=PARTS), RecordingProgress()
    reports = run_workers(partial(work, retry_for=1.0), [settings, settings], WorkerShard(), progress)
    report = _combined_report(reports, 1.0)
    assert report.complete and report.cache_id == alone.cache_id
    # At the very end both may be at the same part, whose second making is dropped.
    assert report.parts.planned <= report.parts.made <= report.parts.planned + 2
    assert progress.updates["cache-teacher"][-1].facts["parts"] == report.parts.made and not progress.open_tasks
    # Messages about shared inputs are shown once.
    assert sum("columns" in line for line in progress.messages) == 1


@pytest.mark.slow
def test_a_message_of_all_workers_is_shown_once(folder: Path) -> None:
    progress = RecordingProgress()
    run_workers(talk, [settings_for(folder)] * 2, WorkerShard(), progress)
    assert sorted(progress.messages) == sorted(progress.warnings) == ["all", "worker 0", "worker 1"]


@pytest.mark.slow
def test_a_worker_that_dies_is_missed(folder: Path) -> None:
    with pytest.raises(KdpipeError, match=r"worker 0 died.*exit code -9"):
        run_workers(die, [settings_for(folder)], WorkerShard(), RecordingProgress())


@pytest.mark.slow
def test_the_first_that_fails_stops_the_others_and_its_error_is_raised(folder: Path) -> None:
    with pytest.raises(ConfigError, match="the second fails") as refused:
        run_workers(fail_second, [settings_for(folder)] * 2, WorkerShard(), RecordingProgress())
    assert refused.value.hint == "another"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent the POSIX way")
def test_ctrl_c_in_a_terminal_stops_all_workers_without_a_word_of_theirs(folder: Path, tmp_path: Path) -> None:
    """It goes to every process; the one that the person has started ends the others."""
    log = tmp_path / "log"

    def work() -> None:
        os.setpgid(0, 0)
        with log.open("w") as file:
            os.dup2(file.fileno(), 2)
            run_workers(interrupt_all, [settings_for(folder)] * 2, WorkerShard(), RecordingProgress())

    ended = in_child(work)
    assert (ended.code, ended.output) == (75, "interrupted")
    assert log.read_text() == ""


def test_one_device_is_one_worker_and_each_gpu_has_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    settings = settings_for(folder)
    assert [each.machine.devices for each in worker_settings(settings)] == ["cpu"]
    found = [torch.device("cuda", 0), torch.device("cuda", 1)]
    monkeypatch.setattr(transformers_backend.devices, "choose", lambda request: found)
    monkeypatch.setattr(transformers_backend.devices, "choose_dtype", lambda request, device: "float32")
    monkeypatch.setattr(transformers_backend.devices, "free_memory", lambda device: 10_000_000)
    assert [each.machine.devices for each in worker_settings(settings)] == ["cuda:0", "cuda:1"]
    # They share the threads of the CPU.
    many = settings_for(folder, machine={"threads": 9})
    assert [each.machine.threads for each in worker_settings(many)] == [4, 4]
    assert [each.machine.threads for each in worker_settings(settings)] == [1, 1]
    # A teacher that does not fit on each is spread over all of them, by one worker.
    monkeypatch.setattr(transformers_backend.devices, "free_memory", lambda device: 100_000)
    assert worker_settings(settings) == [settings]
    tokens = settings_for(folder, targets={"kind": "none"})
    assert len(worker_settings(tokens)) == 1
