"""`kdpipe train`: trains a student from a cache."""

from typing import TYPE_CHECKING, Annotated, Final

import typer

from kdpipe.cli import console
from kdpipe.cli.common_options import Json, Quiet
from kdpipe.cli.console import Fact
from kdpipe.cli.flags import ParsedFlags
from kdpipe.cli.load_settings import train_settings
from kdpipe.cli.progress import shown_progress
from kdpipe.cli.quantities import duration, share, size
from kdpipe.cli.sample import last_lines
from kdpipe.schemas.counts import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kdpipe.schemas.run_report import DryStep, Estimate, TrainReport

COLUMNS: Final = 80


def train(
    given: ParsedFlags,
    resume_from: Annotated[
        str | None,
        typer.Option(
            "--resume-from", metavar="STEP|DIR", help="Resume from this checkpoint instead of the newest valid one."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete another run in the output directory first.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Run five steps and estimate time and memory of the whole run.")
    ] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Train a student from a cache.

    Re-run the command to resume.
    """
    settings = train_settings(given)
    from kdpipe.pipeline.train import train as run
    from kdpipe.schemas.train_settings import TrainOptions

    options = TrainOptions(resume_from=resume_from, overwrite=overwrite, dry_run=dry_run)
    with shown_progress(quiet=quiet) as progress:
        report = run(settings, options, progress)
    console.reply(report, page(report), as_json=json)
    if report.final is not None and not json:
        console.next_commands(next_commands(report, settings.cache.path or report.cache), quiet=quiet)


def next_commands(report: "TrainReport", cache: str) -> list[list[str]]:
    """What to do with a finished run; it can be evaluated on what the cache held out."""
    sample = ["sample", report.run]
    if report.evaluation is None:
        first = [[*sample, "--prompt", "TEXT"]]
    else:
        first = [["eval", "--from-cache", cache, "--student", report.run], sample]
    return [
        *first,
        ["compare", report.run, "OTHER_RUN"],
        ["export", report.run, "--to", "hf"],
    ]


def page(report: "TrainReport") -> str:
    """The report as text."""
    lines = [report.run, *console.facts([*_extent(report), *_trained(report), *_effort(report)])]
    if report.samples is not None:
        lines += last_lines(report.samples)
    if report.dry_run is not None:
        lines += _dry_run(report.dry_run)
    elif report.final is not None:
        lines.append(f"student: {report.final}")
    return "\n".join(lines)


def _dry_run(estimate: "Estimate") -> list[str]:
    """Shapes of the first micro-batch, the first steps, and what the whole run needs."""
    shapes = [
        (f"{owner} {name}", " x ".join(f"{n:,}" for n in shape))
        for owner, shapes in (("student", estimate.student_shapes), ("teacher", estimate.teacher_shapes))
        for name, shape in shapes.items()
    ]
    device = "" if estimate.peak_device_bytes is None else f", {size(estimate.peak_device_bytes)} on the device"
    needs = f"about {duration(estimate.seconds)} and {size(estimate.peak_bytes)} of memory{device}"
    return [*console.facts(shapes), *_dry_steps(estimate.steps), f"dry run: OK; the whole run needs {needs}"]


def _dry_steps(steps: "Sequence[DryStep]") -> list[str]:
    """Loss, contribution of each term and learning rates of each step, in tables of at most 80 columns."""
    rows = []
    for step in steps:
        terms = {name: f"{term.weighted or 0:.4f}" for name, term in step.terms.items()}
        rates = {f"lr {name}": f"{lr:.3g}" for name, lr in step.rates.items()}
        rows.append({"step": str(step.step), "loss": f"{step.loss:.4f}", **terms, **rates})
    tables: list[list[str]] = []
    for name in dict.fromkeys(name for row in rows for name in row):
        cells = [name, *(row.get(name, "") for row in rows)]
        column = [f"  {cell:>{max(map(len, cells))}}" for cell in cells]
        if not tables or len(tables[-1][0] + column[0]) > COLUMNS:
            tables.append([f"  {cell:>4}" for cell in ("step", *(row["step"] for row in rows))])
        if name != "step":
            tables[-1] = [line + cell for line, cell in zip(tables[-1], column, strict=True)]
    return [line for table in tables for line in table]


def _extent(report: "TrainReport") -> list[Fact]:
    trainable = "" if report.n_trainable == report.n_parameters else f", {report.n_trainable:,} trainable"
    steps = f"{report.steps:,} of {report.steps_planned:,}, {report.epochs:.3g} epochs"
    facts = [
        (
            "student",
            f"{report.student}, {report.n_parameters:,} parameters{trainable}, {report.precision} on {report.device}",
        ),
        ("cache", report.cache_id or f"{report.cache}, unfinished"),
        ("steps", steps + (f", resumed from step {report.resumed_from:,}" if report.resumed_from else "")),
        ("positions", f"{report.positions:,}"),
    ]
    if report.skipped or report.rollbacks:
        facts.append(
            (
                "skipped",
                f"{counted(report.skipped, 'step')}, {counted(report.rollbacks, 'rollback')}",
            )
        )
    return facts


def _trained(report: "TrainReport") -> list[Fact]:
    facts = []
    for name, term in report.terms.items():
        value = "not measured" if term.raw is None else f"{term.raw:.4f}"
        value += "" if term.weighted is None else f", weighted {term.weighted:.4f}"
        part = "" if term.share is None else f", {share(term.share)} of the loss"
        facts.append((name, f"{value} (weight {term.weight:.4g}){part}"))
    if report.evaluation is not None:
        facts.append(("validation", ", ".join(_numbers(report.evaluation))))
    if report.best is not None:
        facts.append(("best", f"step {report.best.step:,}: {report.best.metric} {report.best.value:.4f}"))
    return facts


def _numbers(evaluation: dict[str, float | int | str | None]) -> list[str]:
    formats = {
        "loss": "loss {:.4f}",
        "loss_shifted": "loss_shifted {:.4f}",
        "cross_entropy": "CE {:.4f}",
        "perplexity": "perplexity {:.2f}",
        "kl_teacher": "KL to the teacher {:.4f}",
        "top1_agreement": "top-1 agreement {:.1%}",
        "ece": "ECE {:.1%}",
    }
    return [text.format(evaluation[name]) for name, text in formats.items() if evaluation.get(name) is not None]


def _effort(report: "TrainReport") -> list[Fact]:
    times = [duration(report.seconds)]
    if report.positions_per_second is not None:
        times.append(f"{report.positions_per_second:,.0f} positions/s")
    if report.waiting_share is not None:
        times.append(f"{report.waiting_share:.1%} waiting for the cache")
    memory = [f"weights {size(report.memory.weights)}"]
    if report.memory.peak_process is not None:
        memory.append(f"process peak {size(report.memory.peak_process)}")
    if report.memory.peak_device is not None:
        memory.append(f"device peak {size(report.memory.peak_device)}")
    return [("time", ", ".join(times)), ("memory", ", ".join(memory))]
