"""`kdpipe compare`: the table that people read, and the document that programs read."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kdpipe.cli.compare import names
from kdpipe.cli.main import run
from support.evaluations import evaluation, run_folder
from support.terminal import on_a_terminal, screen

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
settings that differ
             labels  hybrid
losses.mode  output  hybrid

metrics, step 10, documents 4, positions 400, * best
        own loss       CE  perplexity       KL   top-1     ECE
labels    1.2500  3.0125        20.00  0.9600   48.75%  4.00%
hybrid    1.2500  2.9350*       20.00  0.8775*  48.75%  3.50%*

difference to labels, ± half of its 90 % interval
                     CE               KL  top-1 (points)  ECE (points)
hybrid  -0.0775 ±0.0356  -0.0825 ±0.0389     +0.00 ±0.00         -0.50

note: only 4 evaluated documents: intervals are unreliable; evaluate on 20 or
  more
note: intervals cover these students only: seeds of one recipe often differ by
  more, so compare several seeds
"""


def test_the_tables_have_settings_numbers_and_differences(
    runs: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["compare", *runs]) == 0
    shown = capsys.readouterr()
    tables, objectives, _ = shown.out.partition("note: no difference of losses:")
    assert tables == TABLE
    assert objectives
    assert shown.err == ""


@pytest.mark.parametrize("columns", [80, 120])
def test_many_runs_fit_the_terminal(
    columns: int, runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    long = {**BASE, "student": {"name": "/a/very/long/path/to/a/student/that/no/table/holds"}}
    more = [str(run_folder(tmp_path / f"run-{n}-{'x' * 90}", long, evaluation(step=n))) for n in range(6)]
    assert run(["compare", *runs, *more]) == 0
    out = capsys.readouterr().out
    tables = out.partition("note:")[0]
    assert max(len(line) for line in tables.splitlines()) <= columns
    assert "...to/a/student/that/no/table/holds"[-25:] in out


def test_a_terminal_shows_the_best_values_in_color(runs: list[str], tmp_path: Path) -> None:
    program = f"import sys; from kdpipe.cli.main import run; sys.stdout = sys.stderr; run(['compare', *{runs!r}])"
    _, shown, code = on_a_terminal(program, tmp_path, columns=80)
    assert code == 0
    assert "\x1b[32m2.9350*\x1b[0m" in shown and "\x1b[1mmetrics, step 10" in shown
    assert re.sub(r"\x1b\[\d*m", "", "\n".join(screen(shown))).startswith(TABLE.rstrip("\n"))


def test_markdown_and_html_have_the_same_cells_with_the_best_in_bold(
    runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compare", *runs, "--format", "md"]) == 0
    assert "| hybrid | 1.2500 | **2.9350** | 20.00 | **0.8775** | 48.75% | **3.50%** |" in capsys.readouterr().out
    assert run(["compare", *runs, "--format", "html"]) == 0
    page = capsys.readouterr().out
    assert "<tr><th>hybrid</th><td>1.2500</td><td><b>2.9350</b></td>" in page
    assert page.count("<table>") == page.count("</table>") == 3


def test_csv_has_a_line_for_each_run_with_all_digits(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", *runs, "--format", "csv"]) == 0
    first, second = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (first["run"], first["kind"], first["losses.mode"], first["cross_entropy_difference"]) == (
        runs[0], "run", "output", "",
    )  # fmt: skip
    assert float(second["cross_entropy"]) == 2.935
    assert float(second["cross_entropy_difference"]) == pytest.approx(2.935 - 3.0125)


def test_json_and_another_format_exclude_each_other(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", *runs, "--json", "--format", "md"]) == 2
    assert "--json" in capsys.readouterr().err


def test_runs_are_compared_without_torch(runs: list[str]) -> None:
    program = f"import sys; from kdpipe.cli.main import run; run(['compare', *{runs!r}]); print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert not set(answer.stdout.split()) & {"torch", "transformers", "datasets"}


def test_a_run_without_an_evaluation_has_dashes_and_a_note(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = str(run_folder(tmp_path / "bare", BASE, None))
    assert run(["compare", runs[0], bare]) == 0
    out = capsys.readouterr().out
    assert "difference to the first" not in out
    assert f"{bare} has no evaluation" in " ".join(out.split())
    (row,) = [line for line in out.splitlines() if line.startswith("bare ")]
    assert set(row.split()[1:]) == {"-"}


def test_json_is_one_document(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", *runs, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [one["run"] for one in answer["runs"]] == runs
    assert answer["runs"][1]["settings"] == {"losses.mode": "hybrid"}
    assert set(answer["runs"][1]["differences"]["cross_entropy"]) == {"value", "spread"}


def test_missing_runs_are_refused_in_two_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", str(tmp_path), str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert run(["compare", str(tmp_path)]) == 2
    assert "two or more" in capsys.readouterr().err


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
