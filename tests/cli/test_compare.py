"""`kdpipe compare`: the table that people read, and the document that programs read."""

import json
from pathlib import Path

import pytest

from kdpipe.cli.compare import names
from kdpipe.cli.main import run
from support.evaluations import evaluation, run_folder

BASE = {"seed": 0, "losses": {"alpha": 0.1, "mode": "hybrid"}, "student": {"name": "tiny"}}


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Two runs that differ in their mode, evaluated on the same documents."""
    better = evaluation(cross_entropy=[290.0, 305.0, 280.0, 299.0], kl_teacher=[90.0, 80.0, 91.0, 90.0], ece=0.035)
    labels = {**BASE, "losses": {"alpha": 0.1, "mode": "output"}}
    return [
        str(run_folder(tmp_path / "runs" / "labels", labels, evaluation())),
        str(run_folder(tmp_path / "runs" / "hybrid", BASE, better)),
    ]


TABLE = """\
                                     labels             hybrid
losses.mode                          output             hybrid
step                                     10                 10
documents                                 4                  4
positions                               400                400
loss (own objective)                 1.2500             1.2500
CE                                   3.0125             2.9350
perplexity                            20.00              20.00
KL to the teacher                    0.9600             0.8775
top-1 agreement                      48.75%             48.75%
calibration error                     4.00%              3.50%
difference to the first run, ± half of its 90 % interval (shares in percentage points):
  CE                                           -0.0775 ±0.0356
  KL to the teacher                            -0.0825 ±0.0389
  top-1 agreement                                  +0.00 ±0.00
  calibration error                                      -0.50
note: only 4 evaluated documents: intervals are unreliable; evaluate on 20 or more
note: intervals cover these students only: seeds of one recipe often differ by more, so compare several seeds
note: no difference of losses: {hybrid} and {labels} have different objectives (losses.mode); \
compare CE, KL to the teacher and agreement
"""


def test_the_table_has_settings_numbers_and_differences(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", *runs]) == 0
    shown = capsys.readouterr()
    assert shown.out == TABLE.format(labels=runs[0], hybrid=runs[1])
    assert shown.err == ""


def test_many_runs_are_split_into_narrow_tables(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = {**BASE, "student": {"name": "/a/very/long/path/to/a/student/that/no/table/holds"}}
    more = [str(run_folder(tmp_path / f"run-{n}", long, evaluation())) for n in range(4)]
    assert run(["compare", *runs, *more]) == 0
    out = capsys.readouterr().out
    assert max(len(line) for line in out.splitlines() if not line.startswith("note: ")) <= 100
    tables = out.partition("note:")[0].split("\n\n")
    assert len(tables) == 2
    assert all(table.split()[0] == "labels" for table in tables)
    assert "...udent/that/no/table/holds"[-15:] in out


def test_a_run_without_an_evaluation_has_dashes_and_a_note(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = str(run_folder(tmp_path / "bare", BASE, None))
    assert run(["compare", runs[0], bare]) == 0
    out = capsys.readouterr().out
    assert "difference to the first" not in out
    assert f"note: {bare} has no evaluation" in out
    assert out.splitlines()[2].split() == ["step", "10", "-"]


def test_json_is_one_document(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", *runs, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [one["run"] for one in answer["runs"]] == runs
    assert answer["runs"][1]["settings"] == {"losses.mode": "hybrid"}
    assert set(answer["runs"][1]["differences"]["cross_entropy"]) == {"value", "spread"}


def test_missing_runs_are_refused_in_two_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", str(tmp_path), str(tmp_path)]) == 2
    assert "is not a run" in capsys.readouterr().err
    assert run(["compare", str(tmp_path)]) == 2
    assert "two or more run folders" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["runs/a", "runs/b"], ["a", "b"]),
        (["one/a", "two/a"], ["one/a", "two/a"]),
        (["runs/a", "runs/a"], ["a", "a"]),
        (["a", "b/a"], ["a", "b/a"]),
    ],
)
def test_runs_are_named_by_the_part_of_the_path_that_differs(paths: list[str], expected: list[str]) -> None:
    assert names(paths) == expected
