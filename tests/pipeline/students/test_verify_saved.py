"""A saved student is loaded again: a small one in this process, a large one in a new process."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kdpipe.cache import open_cache
from kdpipe.pipeline.students import verify_saved as reload
from kdpipe.pipeline.students.saving import save_student
from kdpipe.pipeline.students.student import Student
from kdpipe.pipeline.students.verify_saved import IN_PROCESS_PARAMETERS, ROWS, cached_ids, check_reload
from kdpipe.pipeline.training.interruptions import stop_on_signals
from kdpipe.schemas.errors import Interrupted, KdpipeError
from support.children import in_child
from support.students import CPU, IDS, student
from support.tiny import make_cache

LARGE = IN_PROCESS_PARAMETERS
ROW = [(7 * place) % 290 + 3 for place in range(40)]


def test_the_rows_are_of_one_document(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache")
    cache = open_cache(tmp_path / "cache")
    ids = cached_ids(cache)
    rows = cache[0]
    end = [*rows.document_starts[1:].tolist(), len(rows.tokens)][0]
    assert ids == rows.tokens[: min(end, 64)].tolist()
    assert all(0 <= token < IDS.count for token in ids)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Student:
    """A student whose logits are taken for those of the new process."""
    found = student("tiny")
    logits = found.logits(torch.tensor([ROW]))[0, -ROWS:].detach().numpy()
    monkeypatch.setattr(reload, "_fresh", lambda *words: (logits, torch.float32))
    return found


def test_what_differs_is_noticed(heard: Student) -> None:
    assert check_reload(heard.logits, Path("final"), ROW, CPU, n_parameters=LARGE) == 0
    with pytest.raises(KdpipeError, match=r"differ by \S+ of the largest; expected at most 0\.001") as caught:
        check_reload(lambda ids: heard.logits(ids) * 1.01, Path("final"), ROW, CPU, n_parameters=LARGE)
    assert caught.value.exit_code == 1
    assert "--debug" in str(caught.value.hint)
    with pytest.raises(KdpipeError, match="differ by nan"):
        check_reload(lambda ids: heard.logits(ids) * torch.nan, Path("final"), ROW, CPU, n_parameters=LARGE)


def test_rows_that_pad_are_not_compared_and_missing_ones_are_noticed(heard: Student) -> None:
    assert check_reload(lambda ids: heard.logits(ids)[..., :280], Path("final"), ROW, CPU, n_parameters=LARGE) == 0
    with pytest.raises(KdpipeError, match=r"\[8, 300\].*\[8, 305\]"):
        check_reload(
            lambda ids: torch.nn.functional.pad(heard.logits(ids), (0, 5)),
            Path("final"),
            ROW,
            CPU,
            n_parameters=LARGE,
        )


@pytest.mark.parametrize("n_parameters", [LARGE - 1, pytest.param(LARGE, marks=pytest.mark.slow)])
def test_a_saved_student_predicts_the_same_or_the_error_names_the_reason(tmp_path: Path, n_parameters: int) -> None:
    found = student("tiny", precision="fp16-pure")
    save_student(found, tmp_path / "final", {}, "")
    assert check_reload(found.logits, tmp_path / "final", ROW, CPU, n_parameters=n_parameters) <= 1e-2
    config = tmp_path / "final" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "none-such"}))
    with pytest.raises(KdpipeError, match="none-such"):
        check_reload(found.logits, tmp_path / "final", ROW, CPU, n_parameters=n_parameters)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent the POSIX way")
def test_the_child_process_ignores_a_ctrl_c_of_the_run(tmp_path: Path) -> None:
    """The run takes it as a wish to stop once its student is saved and checked."""
    found = student("tiny")
    save_student(found, tmp_path / "final", {}, "")

    def work() -> str:
        os.setpgid(0, 0)
        communicate = subprocess.Popen.communicate

        def to_all(process: "subprocess.Popen[bytes]") -> tuple[bytes, bytes]:
            os.killpg(0, signal.SIGINT)
            return communicate(process)

        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Interrupted), stop_on_signals() as stop:
            patch.setattr(subprocess.Popen, "communicate", to_all)
            difference = check_reload(found.logits, tmp_path / "final", ROW, CPU, n_parameters=LARGE)
        return f"{stop.requested} {difference < 1e-3}"

    ended = in_child(work)
    assert (ended.code, ended.output) == (0, "True True")


def test_small_students_start_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr(reload, "_fresh", lambda *words: started.append(words))
    found = student("tiny")
    save_student(found, tmp_path / "final", {}, "")
    assert check_reload(found.logits, tmp_path / "final", ROW, CPU, n_parameters=LARGE - 1) < 1e-3
    assert started == []
