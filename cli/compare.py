"""`kdpipe compare`: runs beside each other in one table.

In: folders of runs. Out: a table for a person, or the whole report as one JSON document.
"""

from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated

import typer

from kdpipe.cli import console

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
    "top1_agreement": ("agreement", "{:.2%}"),
    "ece": ("calibration error", "{:.2%}"),
}
LOSSES = ("loss", "loss_shifted")
# A share is told in percent, its difference in points of it.
SHARES = ("top1_agreement", "ece")


def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN RUN...", help="Run folders; differences are from the first.")
    ],
    json: Annotated[bool, typer.Option("--json", help="Answer with one JSON document.")] = False,
) -> None:
    """Compare runs: settings that differ, final metrics, differences from the first with 90 % intervals."""
    from kdpipe.pipeline.compare import compare as run

    report = run(runs)
    console.reply(report, page(report), as_json=json)


def page(report: "CompareReport") -> str:
    """The tables, and what is to be known of them."""
    first, others = report.runs[0], report.runs[1:]
    lines = []
    for begin in range(0, len(others), TOGETHER - 1):
        lines += [*_table((first, *others[begin : begin + TOGETHER - 1])), ""]
    return "\n".join([*lines[:-1], *(f"note: {note}" for note in report.notes)])


def _table(runs: "Sequence[ComparedRun]") -> Iterator[str]:
    yield _row("", names([one.run for one in runs]))
    for setting in runs[0].settings:
        yield _row(setting, [one.settings[setting] for one in runs])
    yield _row("step", [_count(one.step) for one in runs])
    yield _row("documents", [_count(one.documents) for one in runs])
    yield _row("positions", [_count(one.positions) for one in runs])
    for metric, (name, form) in NUMBERS.items():
        values = [one.numbers.get(metric) for one in runs]
        if metric in LOSSES and any(one.same_objective is False for one in runs):
            name = f"{name} (own objective)"
        if any(value is not None for value in values):
            yield _row(name, ["-" if value is None else form.format(value) for value in values])
    if any(one.differences for one in runs):
        yield "difference from the first (shares in points), ± half of its 90 % interval:"
    for metric, (name, _) in NUMBERS.items():
        cells = [_difference(one, metric) for one in runs]
        if any(cells):
            yield _row(f"  {name}", ["", *(cell or "-" for cell in cells[1:])])


def names(runs: Sequence[str]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [PurePath(run).parts for run in runs]
    for n in range(1, max(map(len, parts)) + 1):
        ends = ["/".join(one[-n:]) for one in parts]
        if len(set(ends)) == len({*parts}):
            return ends
    return list(runs)


def _row(label: str, cells: Sequence[str]) -> str:
    width = COLUMN - 1
    told = (" ".join(cell.split()) for cell in cells)
    return (_cut(label, LABEL).ljust(LABEL) + "".join(f" {_cut(cell, width):>{width}}" for cell in told)).rstrip()


def _cut(text: str, width: int) -> str:
    """The end of a text is what tells names and paths apart."""
    return text if len(text) <= width else f"...{text[3 - width :]}"


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _difference(run: "ComparedRun", metric: str) -> str:
    found = run.differences.get(metric)
    if found is None:
        return ""
    scale, form = (100, ".2f") if metric in SHARES else (1, ".4f")
    spread = "" if found.spread is None else f" ±{scale * found.spread:{form}}"
    return f"{scale * found.value:+{form}}{spread}"
