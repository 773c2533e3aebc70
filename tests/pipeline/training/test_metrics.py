"""metrics.jsonl: strict, exact, cut where a run goes on, and whole whatever kills it."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdpipe.pipeline.training.metrics import FILE, Metrics, read_metrics
from kdpipe.schemas.errors import CacheWriteError
from kdpipe.schemas.strict_json import parse


@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_floats_come_back_to_the_bit(value: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    run = tmp_path_factory.mktemp("run")
    metrics = Metrics(run)
    metrics.write({"loss": value})
    metrics.close()
    (line,) = read_metrics(run)
    assert math.copysign(1, line["loss"]) == math.copysign(1, value)
    assert line["loss"] == value


def test_what_is_not_finite_is_null_and_named(tmp_path: Path) -> None:
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
def test_a_run_that_goes_on_has_the_file_of_an_undisturbed_one(tmp_path: Path, half: bytes) -> None:
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
    noted = first.settled()
    first.write({"step": 3, "loss": 0.0})
    first.close()
    with (run / FILE).open("ab") as file:
        file.write(half)
    second = Metrics(run, noted)
    for step in range(3, 6):
        second.write({"step": step, "loss": 1 / 3})
    second.close()
    assert (run / FILE).read_bytes() == (whole / FILE).read_bytes()


def test_a_file_that_was_shortened_goes_on_behind_its_last_whole_line(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b'{"step":0}\n{"st')
    metrics = Metrics(tmp_path, 500)
    metrics.write({"step": 5})
    metrics.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 5]


def test_a_new_run_leaves_nothing_of_an_older_file(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b'{"step":0}\n')
    Metrics(tmp_path).close()
    assert read_metrics(tmp_path) == []


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(CacheWriteError, match="metrics could not be written"):
        Metrics(tmp_path)


def test_only_what_json_knows_is_taken(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    with pytest.raises(TypeError):
        metrics.write({"loss": object()})
    metrics.close()
    assert json.loads(b"[]") == read_metrics(tmp_path)
