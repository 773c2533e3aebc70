"""metrics.jsonl: strict JSON, exact, cut where a run resumes, and whole after any kill."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdpipe.pipeline.training.metrics import FILE, Metrics, read_metrics
from kdpipe.schemas.checkpoint import MetricsState
from kdpipe.schemas.errors import WriteError
from kdpipe.schemas.strict_json import parse, sha256_hex


@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_floats_are_read_back_to_the_bit(value: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    run = tmp_path_factory.mktemp("run")
    metrics = Metrics(run)
    metrics.write({"loss": value})
    metrics.close()
    (line,) = read_metrics(run)
    assert math.copysign(1, line["loss"]) == math.copysign(1, value)
    assert line["loss"] == value


def test_nonfinite_values_are_null_and_named(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    metrics.write({"step": 1, "loss": math.nan, "terms": {"ce": {"raw": -math.inf, "weight": 0.5}}})
    metrics.write({"step": 2, "loss": 1.0})
    metrics.close()
    lines = (tmp_path / FILE).read_bytes().splitlines()
    assert parse(lines[0], "line") == {
        "step": 1,
        "loss": None,
        "terms": {"ce": {"raw": None, "weight": 0.5}},
        "nonfinite": {"loss": "nan", "terms.ce.raw": "-inf"},
    }
    assert parse(lines[1], "line") == {"step": 2, "loss": 1.0}


def test_every_line_can_be_read_at_once(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    for step in range(3):
        metrics.write({"step": step})
        assert [line["step"] for line in read_metrics(tmp_path)] == list(range(step + 1))
    metrics.close()


@pytest.mark.parametrize("half", [b"", b'{"step": 3, "lo', b'{"step":9}\n{"st'])
def test_a_resumed_run_has_the_file_of_an_uninterrupted_one(tmp_path: Path, half: bytes) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    for folder in (whole, run):
        folder.mkdir()
    undisturbed = Metrics(whole)
    for step in range(6):
        undisturbed.write({"step": step, "loss": 1 / 3})
    undisturbed.close()
    first = Metrics(run)
    for step in range(3):
        first.write({"step": step, "loss": 1 / 3})
    noted = first.sync()
    first.write({"step": 3, "loss": 0.0})
    first.close()
    with (run / FILE).open("ab") as file:
        file.write(half)
    second = Metrics(run, noted)
    for step in range(3, 6):
        second.write({"step": step, "loss": 1 / 3})
    second.close()
    assert (run / FILE).read_bytes() == (whole / FILE).read_bytes()


def test_a_log_that_cannot_be_closed_is_named(tmp_path: Path) -> None:
    """Some file systems report only then that the disk is full."""
    metrics = Metrics(tmp_path)
    os.close(metrics._file)
    with pytest.raises(WriteError, match=r"not write metrics.*metrics\.jsonl"):
        metrics.close()


def written(run: Path, n_steps: int) -> MetricsState:
    """Lines of so many steps, evaluated at every second one."""
    metrics = Metrics(run)
    for step in range(1, n_steps + 1):
        metrics.write({"step": step, "loss": 1 / step, "verdict": "accept"})
        if step % 2 == 0:
            metrics.write({"step": step, "evaluation": {"loss": 1.5}})
    noted = metrics.sync()
    metrics.close()
    return noted


@pytest.mark.parametrize(
    ("damage", "present", "steps"),
    [
        (lambda data: None, 0, []),
        (lambda data: b"", 0, []),
        (lambda data: data[: data.index(b"3") + 4], 3, [1, 2, 2]),  # torn in the third step
        (lambda data: data[:-1], 5, [1, 2, 2, 3, 4]),
        (lambda data: data[data.index(b"\n") + 1 :], 5, [2, 2, 3, 4, 4]),
        (lambda data: data.replace(b"1.5", b"1.4"), 6, [1, 2, 2, 3, 4, 4]),
        (lambda data: data[:-1] + b'\n{"step":5,"verdict":"accept"}\n{"st', 6, [1, 2, 2, 3, 4, 4]),  # a longer one
        (lambda data: b"\0" * len(data), 0, []),
    ],
    ids=["missing", "empty", "torn", "torn at its end", "beginning lost", "changed", "and more", "zeros"],
)
def test_missing_lines_are_reported_and_marked(
    tmp_path: Path, damage: Callable[[bytes], bytes | None], present: int, steps: list[int]
) -> None:
    noted = written(tmp_path, 4)
    assert (noted.lines, noted.bytes) == (6, (tmp_path / FILE).stat().st_size)
    data = damage((tmp_path / FILE).read_bytes())
    if data is not None and data.endswith(b'{"st'):
        data = data.replace(b"1.5", b"1.4")  # not what the checkpoint knows, and longer
    (tmp_path / FILE).unlink()
    if data is not None:
        (tmp_path / FILE).write_bytes(data)
    for _ in range(2):  # also when the run is killed before its next checkpoint
        metrics = Metrics(tmp_path, noted, 4)
        assert metrics.gap is not None
        assert (metrics.gap.step, metrics.gap.expected, metrics.gap.present) == (4, 6, present)
        assert ("was modified" if present == 6 else f"has {present} of the 6 lines") in str(metrics.gap)
        metrics.write({"step": 5, "verdict": "accept"})
        metrics.close()
        lines = read_metrics(tmp_path)
        assert [line["step"] for line in lines] == [*steps, 4, 5]
        assert lines[-2] == {"step": 4, "metrics_gap": {"expected_lines": 6, "present_lines": present}}
    # What a later checkpoint counts has the mark: nothing is missing then.
    metrics = Metrics(tmp_path, noted, 4)
    metrics.write({"step": 5, "verdict": "accept"})
    later = metrics.sync()
    metrics.close()
    again = Metrics(tmp_path, later, 5)
    assert again.gap is None
    again.close()


def test_lines_after_the_checkpoint_are_cut_from_a_file_with_missing_lines(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    for step, verdict in enumerate(("accept", "accept", "accept", "skip"), 1):
        metrics.write({"step": min(step, 3), "place": 8 * step, "verdict": verdict})
    noted = metrics.sync()
    before = (tmp_path / FILE).read_bytes().splitlines(keepends=True)
    metrics.write({"step": 3, "place": 40, "verdict": "skip"})
    metrics.write({"step": 4, "place": 48, "verdict": "accept"})
    metrics.write({"step": 4, "evaluation": {"loss": 1.5}})
    metrics.undo(3)
    metrics.write({"step": 3, "place": 56, "verdict": "rollback"})
    metrics.close()
    lines = (tmp_path / FILE).read_bytes().splitlines(keepends=True)
    (tmp_path / FILE).write_bytes(b"".join(lines[2:]))
    metrics = Metrics(tmp_path, noted, 3, 32)
    metrics.close()
    assert metrics.gap is not None and (metrics.gap.expected, metrics.gap.present) == (4, 2)
    assert (tmp_path / FILE).read_bytes().splitlines(keepends=True)[:-1] == before[2:]


def test_undone_steps_and_evaluations_are_marked_and_others_unchanged(tmp_path: Path) -> None:
    written(tmp_path, 4)
    before = (tmp_path / FILE).read_bytes().splitlines()
    state = MetricsState(bytes=sum(map(len, before)) + 6, lines=6, sha256=sha256_hex((tmp_path / FILE).read_bytes()))
    metrics = Metrics(tmp_path, state, 4)
    metrics.write({"step": 4, "verdict": "skip", "loss": math.nan})
    metrics.undo(2)
    metrics.write({"step": 2, "verdict": "rollback"})
    metrics.write({"step": 3, "verdict": "accept"})
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines if line.get("verdict") == "accept"] == [1, 2, 3]
    assert [(line["step"], line.get("verdict")) for line in lines if line.get("undone")] == [
        (3, "undone"), (4, "undone"), (4, None),
    ]  # fmt: skip
    assert [line["verdict"] for line in lines if line["step"] == 4 and "nonfinite" in line] == ["skip"]
    assert (tmp_path / FILE).read_bytes().splitlines()[:3] == before[:3]
    # Undone once more: what was marked stays as it is, and the checkpoint counts what is there.
    metrics.undo(2)
    noted = metrics.sync()
    metrics.close()
    assert [line["step"] for line in read_metrics(tmp_path) if line.get("verdict") == "accept"] == [1, 2]
    data = (tmp_path / FILE).read_bytes()
    assert noted == MetricsState(bytes=len(data), lines=9, sha256=sha256_hex(data))


def test_a_new_run_replaces_an_older_file(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b'{"step":0}\n')
    Metrics(tmp_path).close()
    assert read_metrics(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(WriteError, match="could not write metrics"):
        Metrics(tmp_path)


def test_only_json_values_are_accepted(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    with pytest.raises(TypeError):
        metrics.write({"loss": object()})
    metrics.close()
    assert json.loads(b"[]") == read_metrics(tmp_path)
