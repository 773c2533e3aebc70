"""`kdpipe compare`: runs, models and the teacher in tables, Markdown, CSV or HTML."""

import csv
import html
import io
from collections.abc import Sequence
from pathlib import PurePath
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, assert_never

import typer

from kdpipe.cli import console
from kdpipe.cli.common_options import Devices, Json, Quiet, RetryFor, RunStudentCode, retry_seconds
from kdpipe.cli.progress import shown_progress
from kdpipe.cli.tables import FILE_COLUMNS, TextTable, screen_columns
from kdpipe.schemas.choices import TableFormat
from kdpipe.schemas.errors import UsageError

if TYPE_CHECKING:
    from kdpipe.schemas.train_report import ComparedRun, CompareReport

NUMBERS = {
    "loss": ("loss", "{:.4f}"),
    "loss_shifted": ("loss_shifted", "{:.4f}"),
    "cross_entropy": ("CE", "{:.4f}"),
    "perplexity": ("perplexity", "{:,.2f}"),
    "kl_teacher": ("KL", "{:.4f}"),
    "top1_agreement": ("top-1", "{:.2%}"),
    "ece": ("ECE", "{:.2%}"),
    "teacher_entropy": ("entropy", "{:.4f}"),
}
LOSSES = ("loss", "loss_shifted")
# Shown in percent, their differences in percentage points.
SHARES = ("top1_agreement", "ece")
# Longer numbers are rounded in tables.
MAX_SETTING, WIDE_NUMBER = 10, 1e5
EXTENT = ("step", "documents", "positions")
HTML_HEAD = """\
<!doctype html>
<meta charset="utf-8">
<title>kdpipe compare</title>
<style>
body {font-family: sans-serif} table {border-collapse: collapse; margin-bottom: 1.5em}
caption {text-align: left; padding: 0.3em} th {text-align: left} td {text-align: right}
td, th {padding: 0.2em 0.8em; border-bottom: 1px solid #ccc} b {color: #080}
</style>"""


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN", help="Run or model folders; differences are relative to the first."),
    ],
    teacher: Annotated[
        bool, typer.Option("--teacher", help="Add the teacher: its metrics in the cache, without loading it.")
    ] = False,
    from_cache: Annotated[
        str | None,
        typer.Option("--from-cache", metavar="DIR", help="Cache for models and the teacher [that of the first run]."),
    ] = None,
    table: Annotated[TableFormat, typer.Option("--format", help="How to print the comparison.")] = "text",
    device: Devices = "auto",
    trust_remote_code: RunStudentCode = False,
    retry_for: RetryFor = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Compare runs and models: settings, metrics, differences.

    Differences are relative to the first one, with 90 % intervals. Models are evaluated as the first run was.
    """
    if json and table != "text":
        raise UsageError(f"--json and --format {table} exclude each other", hint="omit one of them")
    from kdpipe.pipeline.compare import CompareRequest
    from kdpipe.pipeline.compare import compare as run

    request = CompareRequest(
        names=runs,
        teacher=teacher,
        cache=from_cache,
        device=device,
        trust_remote_code=trust_remote_code,
        retry_for=retry_seconds(retry_for),
    )
    with shown_progress(quiet=quiet) as progress:
        report = run(request, progress)
    console.reply(report, page(report, table, screen_columns()), as_json=json)


def page(report: "CompareReport", form: TableFormat = "text", columns: int = FILE_COLUMNS) -> str:
    """The report in one of the formats."""
    tables = [table for table in (_settings(report), _metrics(report), _differences(report)) if table.rows]
    match form:
        case "text":
            blocks = ["\n".join(table.text(columns)) for table in tables]
            notes = [_wrapped(f"note: {note}", columns) for note in report.notes]
            return "\n\n".join([*blocks, "\n".join(notes)])
        case "md":
            blocks = ["\n".join(table.markdown()) for table in tables]
            return "\n\n".join([*blocks, "\n".join(f"- {note}" for note in report.notes)])
        case "html":
            lines = [line for table in tables for line in table.html()]
            return "\n".join([HTML_HEAD, *lines, *(f"<p>{html.escape(note)}</p>" for note in report.notes)])
        case "csv":
            return _csv(report)
        case _:
            assert_never(form)


def _settings(report: "CompareReport") -> TextTable:
    runs = [run for run in report.runs if run.kind == "run"]
    return TextTable(
        title="settings that differ",
        header=("", *names([run.run for run in runs])),
        rows=tuple((name, *(_short(run.settings[name]) for run in runs)) for name in runs[0].settings) if runs else (),
    )


def _metrics(report: "CompareReport") -> TextTable:
    """A row for each; what is the same for all is in the title."""
    runs = report.runs
    extents = {name: {getattr(run, name) for run in runs if getattr(run, name) is not None} for name in EXTENT}
    columns = {name: [_count(getattr(run, name)) for run in runs] for name in EXTENT if len(extents[name]) > 1}
    title = ["metrics", *(f"{name} {min(extents[name]):,}" for name in EXTENT if len(extents[name]) == 1)]
    marked = set()
    for metric, (name, form) in NUMBERS.items():
        values = [run.numbers.get(metric) for run in runs]
        if all(value is None for value in values):
            continue
        if metric in LOSSES and any(run.same_objective is False for run in runs):
            name = f"own {name}"
        columns[name] = ["-" if value is None else _number(value, form) for value in values]
        marked |= {(i, len(columns)) for i, run in enumerate(runs) if metric in run.best}
    for name in dict.fromkeys(name for run in runs for name in run.tasks):
        columns[name] = [f"{run.tasks[name]:.4f}" if name in run.tasks else "-" for run in runs]
    best = ", * best" if marked else ""
    return TextTable(
        title=", ".join(title) + best,
        header=("", *columns),
        rows=tuple(zip(names([run.run for run in runs]), *columns.values(), strict=True)),
        marked=frozenset(marked),
    )


def _differences(report: "CompareReport") -> TextTable:
    others = report.runs[1:]
    shown = [metric for metric in NUMBERS if any(metric in run.differences for run in others)]
    labels = names([run.run for run in report.runs])[1:]
    rows = zip(labels, *([_difference(run, metric) for run in others] for metric in shown), strict=True)
    return TextTable(
        title=f"difference to {names([run.run for run in report.runs])[0]}, ± half of its 90 % interval",
        header=("", *(f"{NUMBERS[metric][0]}{' (points)' if metric in SHARES else ''}" for metric in shown)),
        rows=tuple(rows) if shown else (),
    )


def _csv(report: "CompareReport") -> str:
    """A line for each, with all digits; differences and half their intervals are columns of their own."""
    metrics = [name for name in NUMBERS if any(run.numbers.get(name) is not None for run in report.runs)]
    tasks = list(dict.fromkeys(name for run in report.runs for name in run.tasks))
    compared = [name for name in NUMBERS if any(name in run.differences for run in report.runs)]
    settings = list(report.runs[0].settings)
    changes = [f"{name}_{suffix}" for name in compared for suffix in ("difference", "half_interval")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["run", "kind", *settings, *EXTENT, *metrics, *tasks, *changes])
    for run in report.runs:
        differences = [run.differences.get(name) for name in compared]
        values = [value for change in differences for value in ((change.value, change.spread) if change else ("", ""))]
        extent = [getattr(run, name) for name in EXTENT]
        numbers = [run.numbers.get(name) for name in metrics] + [run.tasks.get(name) for name in tasks]
        writer.writerow([run.run, run.kind, *(run.settings[name] for name in settings), *extent, *numbers, *values])
    return out.getvalue().rstrip("\n")


def names(runs: Sequence[str]) -> list[str]:
    """The shortest suffixes of the paths that are unique."""
    parts = [PurePath(run).parts for run in runs]
    for n in range(1, max(map(len, parts)) + 1):
        ends = ["/".join(path[-n:]) for path in parts]
        if len(set(ends)) == len({*parts}):
            return ends
    return list(runs)


def _wrapped(text: str, columns: int) -> str:
    return fill(text, columns, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _short(setting: str) -> str:
    """A setting, numbers with at most six digits."""
    try:
        return f"{float(setting):.6g}" if "." in setting and len(setting) > MAX_SETTING else setting
    except ValueError:
        return setting


def _number(value: float, form: str) -> str:
    return form.format(value) if abs(value) < WIDE_NUMBER else f"{value:.3g}"


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _difference(run: "ComparedRun", metric: str) -> str:
    difference = run.differences.get(metric)
    if difference is None:
        return "-"
    scale, form = (100, ".2f") if metric in SHARES else (1, ".4f")
    spread = "" if difference.spread is None else f" ±{scale * difference.spread:{form}}"
    return f"{scale * difference.value:+{form}}{spread}"
