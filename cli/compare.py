"""`kdpipe compare`: runs side by side in one table."""

from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated

import typer

from kdpipe.cli import console
from kdpipe.cli.common_options import Json

if TYPE_CHECKING:
    from kdpipe.schemas.train_report import ComparedRun, CompareReport

# A label and four columns are 100 characters wide; more runs come in further tables, each with the first run.
LABEL, COLUMN, TOGETHER = 24, 19, 4
NUMBERS = {
    "loss": ("loss", "{:.4f}"),
    "loss_shifted": ("loss_shifted", "{:.4f}"),
    "cross_entropy": ("CE", "{:.4f}"),
    "perplexity": ("perplexity", "{:,.2f}"),
    "kl_teacher": ("KL to the teacher", "{:.4f}"),
    "top1_agreement": ("top-1 agreement", "{:.2%}"),
    "ece": ("calibration error", "{:.2%}"),
}
LOSSES = ("loss", "loss_shifted")
# Shown in percent, their differences in percentage points.
SHARES = ("top1_agreement", "ece")


def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN RUN...", help="Run folders; differences are relative to the first.")
    ],
    json: Json = False,
) -> None:
    """Compare runs: settings, metrics, differences.

    Differences are relative to the first run, with 90 % intervals.
    """
    from kdpipe.pipeline.compare import compare as run

    report = run(runs)
    console.reply(report, page(report), as_json=json)


def page(report: "CompareReport") -> str:
    """The report as tables and notes."""
    first, others = report.runs[0], report.runs[1:]
    lines = []
    for begin in range(0, len(others), TOGETHER - 1):
        lines += [*_table((first, *others[begin : begin + TOGETHER - 1])), ""]
    return "\n".join([*lines[:-1], *(f"note: {note}" for note in report.notes)])


def _table(runs: "Sequence[ComparedRun]") -> Iterator[str]:
    yield _row("", names([run.run for run in runs]))
    for setting in runs[0].settings:
        yield _row(setting, [run.settings[setting] for run in runs])
    yield _row("step", [_count(run.step) for run in runs])
    yield _row("documents", [_count(run.documents) for run in runs])
    yield _row("positions", [_count(run.positions) for run in runs])
    for metric, (name, form) in NUMBERS.items():
        values = [run.numbers.get(metric) for run in runs]
        if metric in LOSSES and any(run.same_objective is False for run in runs):
            name = f"{name} (own objective)"
        if any(value is not None for value in values):
            yield _row(name, ["-" if value is None else form.format(value) for value in values])
    for name in dict.fromkeys(name for run in runs for name in run.tasks):
        yield _row(name, [f"{run.tasks[name]:.4f}" if name in run.tasks else "-" for run in runs])
    if any(run.differences for run in runs):
        yield "difference to the first run, ± half of its 90 % interval (shares in percentage points):"
    for metric, (name, _) in NUMBERS.items():
        cells = [_difference(run, metric) for run in runs]
        if any(cells):
            yield _row(f"  {name}", ["", *(cell or "-" for cell in cells[1:])])


def names(runs: Sequence[str]) -> list[str]:
    """The shortest suffixes of the paths that are unique."""
    parts = [PurePath(run).parts for run in runs]
    for n in range(1, max(map(len, parts)) + 1):
        ends = ["/".join(path[-n:]) for path in parts]
        if len(set(ends)) == len({*parts}):
            return ends
    return list(runs)


def _row(label: str, cells: Sequence[str]) -> str:
    width = COLUMN - 1
    texts = (" ".join(cell.split()) for cell in cells)
    return (_cut(label, LABEL).ljust(LABEL) + "".join(f" {_cut(cell, width):>{width}}" for cell in texts)).rstrip()


def _cut(text: str, width: int) -> str:
    """The end of a text is kept: there names and paths differ."""
    return text if len(text) <= width else f"...{text[3 - width :]}"


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _difference(run: "ComparedRun", metric: str) -> str:
    difference = run.differences.get(metric)
    if difference is None:
        return ""
    scale, form = (100, ".2f") if metric in SHARES else (1, ".4f")
    spread = "" if difference.spread is None else f" ±{scale * difference.spread:{form}}"
    return f"{scale * difference.value:+{form}}{spread}"
